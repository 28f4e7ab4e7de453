#!/usr/bin/env bash
# Every CPU benchmark of one model, part by part; what is there already of this commit and day is not measured again.
#
#   all.sh FOLDER NAME PEERS [PART...]      parts, in this order when none is named: int4 long head4 avx2 int8 bf16
#                                           mixed taken load ops curves
#
# From the environment: PYTHON (python), OUT (bench/results), REPEATS (5), WRAP, a command before each measurement (a lock;
# it may cut one at 180 seconds). Ends with the first status that is neither 0 nor "something is left".
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2,/^set/{/^#/p}' "$0"; exit 2; }
cd "$(dirname "$0")/../.."
folder=$1 name=$2 peers=$3; shift 3
out=${OUT:-bench/results} repeats=${REPEATS:-5}
[ $# -gt 0 ] || set -- int4 long head4 avx2 int8 bf16 mixed taken load ops curves

run() { # run SCRIPT ARGUMENTS...: again while something is left
  local script=$1 status; shift
  while :; do
    status=0
    ${WRAP:-} "${PYTHON:-python}" "bench/e2e/$script.py" "$folder" --name "$name" --out "$out" "$@" || status=$?
    [ $status = 3 ] || return $status
  done
}

quantized() { run quantized --peers "$peers" --repeats "$repeats" --budget-s 120 "$@"; }

for part in "$@"; do
  SECONDS=0
  case $part in
    int4) quantized ;;
    long) quantized --engines '^pyrite int4$' --workloads prefill_2048 decode_16384 ;;
    head4) quantized --quantization int4_head4 --workloads decode_0 prefill_512 ;;
    avx2) quantized --isa avx2 --workloads decode_0 prefill_512 ;;
    int8) quantized --quantization int8 --workloads decode_0 prefill_512 ;;
    bf16) run decode_prefill --repeats 3 --llama-bench "$peers/llama/bin/llama-bench" --gguf "$peers/$name-bf16.gguf" ;;
    mixed) run mixed --repeats 2 ;;
    taken) run taken_core --repeats 3 ;;
    load) run load; run load --quantization int4 ;;
    ops) run ops ;;
    curves) run curves --peers "$peers" --repeats 2 --budget-s 100 ;;
    *) echo "all.sh: no part $part" >&2; exit 2 ;;
  esac
  echo "== $name $part: $SECONDS s" >&2
done
