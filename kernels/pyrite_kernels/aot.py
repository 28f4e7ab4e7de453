"""Compile kernels ahead of time, without a GPU: `python -m pyrite_kernels.aot [--arch sm_90] [--op matmul] [--write]`.

Each op lists its cases in `cases.py: aot_cases(arch)`. A case must compile, stay within the part's shared memory, have
the instructions it expects, and spill no more bytes than the table allows with a reason. The table has a line per case,
so that what changes shows in a diff; it belongs to one version of Triton, which its first line names.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.metadata
import importlib.util
import json
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ARCHS = ("sm_80", "sm_89", "sm_90", "sm_100", "gfx942")
"""Targets that kernels are compiled for."""

SHARED_LIMIT_BYTES = {
    "sm_80": 163 << 10,
    "sm_89": 99 << 10,
    "sm_90": 227 << 10,
    "sm_100": 227 << 10,
    "gfx942": 64 << 10,
}
"""Most shared memory of one program."""


@dataclass(frozen=True)
class AotCase:
    """A kernel with everything that the compiler must know.

    Args:
        name: unique within its op, such as "bf16_d128_window".
        kernel: the `@triton.jit` function.
        signature: parameter name -> type in Triton's spelling ("*bf16", "i32", "fp32", "constexpr"), all parameters.
        constexprs: values of the "constexpr" parameters.
        num_warps, num_stages, max_registers: as `launch.py` chooses them for this target.
        aligned: parameters that are divisible by 16 (pointers and strides); without it loads are not vectorised.
        expect: regular expressions that the PTX must match (wgmma on sm_90, mma on sm_80, 16-byte loads, ...).
    """

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any]
    num_warps: int
    num_stages: int
    aligned: tuple[str, ...] = ()
    expect: tuple[str, ...] = field(default=())
    max_registers: int | None = None


@dataclass(frozen=True)
class AotResult:
    """What the compiler made of a case.

    Args:
        registers: per thread.
        spill_bytes: stored to local memory, per thread.
        shared_bytes: per program.
        missing: expected patterns that the assembly lacks.
        matched: expected patterns that it has.
        reload_bytes: loaded back from local memory, per thread; 0 where the compiler does not tell.
    """

    registers: int
    spill_bytes: int
    shared_bytes: int
    missing: tuple[str, ...] = ()
    matched: tuple[str, ...] = ()
    reload_bytes: int = 0

    def line(self) -> dict[str, Any]:
        """What the table keeps; numbers that are usually 0 and patterns only where there are any."""
        kept: dict[str, Any] = {key: getattr(self, key) for key in ("registers", "spill_bytes", "shared_bytes")}
        if self.reload_bytes:
            kept["reload_bytes"] = self.reload_bytes
        if self.matched:
            kept["has"] = list(self.matched)
        return kept


def find_cases(arch: str) -> Iterator[tuple[str, AotCase]]:
    """("op/case", case) of every op folder that lists cases for `arch`."""
    package = importlib.import_module("pyrite_kernels")
    for info in pkgutil.iter_modules(package.__path__):
        if info.ispkg and importlib.util.find_spec(f"pyrite_kernels.{info.name}.cases"):
            module = importlib.import_module(f"pyrite_kernels.{info.name}.cases")
            for case in module.aot_cases(arch) if hasattr(module, "aot_cases") else ():
                yield f"{info.name}/{case.name}", case


def compile_case(arch: str, case: AotCase) -> AotResult:
    """Compile one case for a target of `ARCHS`.

    Raises:
        RuntimeError: ptxas refuses the code. Whatever Triton raises where it cannot compile.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    target = GPUTarget("hip", arch, 64) if arch.startswith("gfx") else GPUTarget("cuda", int(arch[3:]), 32)
    names = list(case.signature)
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in case.aligned}
    constants = {(names.index(name),): value for name, value in case.constexprs.items()}
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages, "enable_fp_fusion": False}
    options |= {} if case.max_registers is None else {"maxnreg": case.max_registers}
    source = ASTSource(case.kernel, dict(case.signature), constants, aligned)  # type: ignore[arg-type]
    compiled: Any = triton.compile(source, target=target, options=options)
    assembly = compiled.asm["amdgcn" if arch.startswith("gfx") else "ptx"]
    registers, stored, loaded = _amd_usage(assembly) if arch.startswith("gfx") else _ptxas_usage(arch, assembly)
    matched = tuple(pattern for pattern in case.expect if re.search(pattern, assembly))
    missing = tuple(pattern for pattern in case.expect if pattern not in matched)
    return AotResult(registers, stored, compiled.metadata.shared, missing, matched, loaded)


def _amd_usage(assembly: str) -> tuple[int, int, int]:
    """(vector registers, spilled bytes, 0) of the assembly's own report, which does not count loads."""
    registers = re.findall(r"\.vgpr_count:\s+(\d+)", assembly)
    spilled = re.findall(r"\.vgpr_spill_count:\s+(\d+)", assembly)
    return int(registers[0]), 4 * int(spilled[0]), 0


def _ptxas_usage(arch: str, ptx: str) -> tuple[int, int, int]:
    """(registers, bytes spilled, bytes loaded back) as the bundled ptxas reports them."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    newer = tools / "ptxas-blackwell"  # knows the PTX version that Triton writes for sm_90 and later
    ptxas = newer if newer.exists() and arch != "sm_80" else tools / "ptxas"
    found = re.search(r"\.target (\w+)", ptx)
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [ptxas, "-v", f"-arch={found[1] if found else arch}", file.name, "-o", os.devnull]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    registers = re.findall(r"Used (\d+) registers", done.stderr)
    stored = re.findall(r"(\d+) bytes spill stores", done.stderr)
    loaded = re.findall(r"(\d+) bytes spill loads", done.stderr)
    return int(registers[0]), sum(map(int, stored)), sum(map(int, loaded))


def judge(arch: str, result: AotResult, allowed: Mapping[str, Any] | None) -> list[str]:
    """What is wrong with a result, given its line of the table; spills and what it "lacks" need its "reason"."""
    excused = allowed.get("lacks", ()) if allowed else ()
    faults = [f"the assembly lacks {pattern}" for pattern in result.missing if pattern not in excused]
    if result.shared_bytes > SHARED_LIMIT_BYTES[arch]:
        faults.append(f"shared memory: got {result.shared_bytes}, expected at most {SHARED_LIMIT_BYTES[arch]} bytes")
    if allowed is None:
        faults.append("not in the table: run with --write")
        return faults
    if result.spill_bytes > allowed["spill_bytes"]:
        faults.append(f"spills: got {result.spill_bytes}, expected at most {allowed['spill_bytes']} bytes")
    for what in ("spill_bytes", "lacks"):
        if allowed.get(what) and not allowed.get("reason"):
            faults.append(f"the table allows {what} without a reason")
    return faults


def main() -> None:
    """Compile, then check against the table or write it. Exits with 1 where something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", default=ARCHS, choices=ARCHS)
    parser.add_argument("--op", nargs="+", default=[], help="folders of ops; all of them when left out")
    parser.add_argument("--case", default="", help="regular expression that op/case must match")
    parser.add_argument("--first", action="store_true", help="one case of each kernel only")
    parser.add_argument("--table", type=Path, default=Path("tests/kernels/aot_table.json"))
    parser.add_argument("--write", action="store_true", help="write what was measured; reasons in the table are kept")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        sys.exit("TRITON_INTERPRET=1 leaves nothing to compile")
    table = json.loads(arguments.table.read_text()) if arguments.table.exists() else {}
    whole = not arguments.case and not arguments.first
    wrong = 0
    for arch in arguments.arch:
        lines = table.setdefault(arch, {})
        names = _choose(arch, arguments.op, arguments.case, arguments.first)
        with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
            for name, got in zip(names, pool.map(functools.partial(_try, arch), names), strict=True):
                faults = _settle(arch, name, got, lines, arguments.write)
                wrong += bool(faults)
                print(arch, name, got if not isinstance(got, str) else "", *faults, sep="  ", flush=True)
        for name in sorted(set(lines) - set(names)) if whole else ():
            if arguments.op and name.partition("/")[0] not in arguments.op:
                continue
            if arguments.write:
                del lines[name]
            else:
                wrong += 1
                print(arch, name, "in the table, but no case of this name: run with --write", sep="  ")
    if arguments.write:
        _write_table(arguments.table, table)
    print(f"{wrong} wrong; Triton {_triton_version()}, the table's is {table.get('triton', 'unknown')}")
    sys.exit(1 if wrong else 0)


def _settle(arch: str, name: str, got: AotResult | str, lines: dict[str, Any], write: bool) -> list[str]:
    """Judge a case by its line, or write the line; what is wrong with it."""
    if isinstance(got, str):
        return [got]
    if not write:
        return judge(arch, got, lines.get(name))
    before = lines.get(name, {})
    lacks = [pattern for pattern in got.missing if pattern in before.get("lacks", ())]
    kept: dict[str, Any] = {"lacks": lacks} if lacks else {}
    if before.get("reason") and (got.spill_bytes or lacks):
        kept["reason"] = before["reason"]
    lines[name] = got.line() | kept
    return judge(arch, got, lines[name])


def _write_table(path: Path, table: dict[str, Any]) -> None:
    """One line per case."""
    table["triton"] = _triton_version()
    rows = [f' "triton": {json.dumps(table["triton"])}']
    for arch in sorted(set(table) - {"triton"}):
        lines = ",\n".join(f'  "{name}": {json.dumps(line)}' for name, line in sorted(table[arch].items()))
        rows.append(f' "{arch}": {{\n{lines}\n }}')
    path.write_text("{\n" + ",\n".join(rows) + "\n}\n")


def _triton_version() -> str:
    return importlib.metadata.version("triton")


def _choose(arch: str, ops: Collection[str], pattern: str, first: bool) -> list[str]:
    """Names of the cases to compile."""
    chosen, kernels = [], set()
    for name, case in find_cases(arch):
        op = name.partition("/")[0]
        key = (op, case.kernel.__name__)
        if (not ops or op in ops) and re.search(pattern, name) and not (first and key in kernels):
            kernels.add(key)
            chosen.append(name)
    return chosen


def _try(arch: str, name: str) -> AotResult | str:
    """Compile one case in a process of the pool."""
    case = next(case for found, case in find_cases(arch) if found == name)
    try:
        return compile_case(arch, case)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).strip()[-400:]}"


if __name__ == "__main__":
    # Cases are made of the importable module's classes, not of those of `__main__`.
    from pyrite_kernels.aot import main as run

    run()
