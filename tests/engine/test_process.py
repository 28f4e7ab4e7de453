"""Ctrl-C, fork and exit: each in a process of its own, on the hash model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

HERE = Path(__file__).parent

PRELUDE = """
import sys, time, os, threading, signal
# A runner in the background starts its children with Ctrl-C ignored; at a terminal it is not.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, {here!r})
from rig import Rig
from pyrite.errors import BackendError
from pyrite.params import SamplingParams
rig = Rig(max_model_len=10_000, groups=((None, 2000),))
LONG = SamplingParams(max_tokens=9000, ignore_eos=True)
"""


def start(body: str) -> subprocess.Popen[str]:
    script = PRELUDE.format(here=str(HERE)) + body
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    return subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )


def finish(process: subprocess.Popen[str], timeout_s: float = 30) -> str:
    try:
        output, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail(f"hangs: {process.communicate()[0]}")
    return output


@pytest.mark.parametrize(
    "call", ["rig.generate(['a', 'b'], LONG)", "list(rig.engine.stream(rig.requests('a', LONG)[0]))"]
)
def test_ctrl_c_aborts_the_requests_and_leaves_the_engine_usable(call):
    process = start(
        f"""
print("ready", flush=True)
try:
    {call}
except KeyboardInterrupt:
    print("interrupted", flush=True)
metrics = rig.wait_idle()
rig.check_idle()
print(len(rig.one("again", temperature=0.0, max_tokens=5, ignore_eos=True).outputs[0].token_ids))
"""
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.3)
    sent = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "interrupted\n"
    assert time.monotonic() - sent < 1
    assert finish(process) == "5\n"
    assert process.returncode == 0


def test_exit_with_work_running():
    process = start(
        """
stream = rig.engine.stream(rig.requests("a", LONG)[0])
next(stream)
other = rig.engine.stream(rig.requests("b", LONG)[0])
print("leaving", flush=True)
"""
    )
    assert finish(process) == "leaving\n"
    assert process.returncode == 0


def test_exit_by_an_error_with_work_running():
    process = start(
        """
stream = rig.engine.stream(rig.requests("a", LONG)[0])
next(stream)
raise SystemExit(7)
"""
    )
    assert finish(process) == ""
    assert process.returncode == 7


def test_forked_child_gets_an_error_and_the_parent_goes_on():
    process = start(
        """
import warnings
warnings.simplefilter("ignore")
before = rig.one("a", temperature=0.0, max_tokens=5, ignore_eos=True).outputs[0].token_ids
stream = rig.engine.stream(rig.requests("b", LONG)[0])
next(stream)
pid = os.fork()
if pid == 0:
    for use in (lambda: rig.one("a"), lambda: rig.engine.metrics(), lambda: list(stream)):
        try:
            use()
        except BackendError as error:
            assert error.code == "forked_engine", error.code
        else:
            os._exit(3)
    rig.engine.close()
    del stream
    sys.exit(5)
status = os.waitpid(pid, 0)[1]
print(os.waitstatus_to_exitcode(status), flush=True)
stream.close()
print(rig.one("a", temperature=0.0, max_tokens=5, ignore_eos=True).outputs[0].token_ids == before)
"""
    )
    assert finish(process) == "5\nTrue\n"
    assert process.returncode == 0
