"""Which device is chosen, what is said where none can be, and that the CPU path never imports torch."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import pyrite.memory
import pytest
from plans import MODELS, cuda_backend
from pyrite.backends import devices
from pyrite.backends.devices import CUDA_FUSED_OPS, nvidia_visible, resolve_device
from pyrite.errors import BackendError, CapacityError, ConfigError
from pyrite.memory import open_for, plan_memory
from pyrite.models.fuse import fuse
from pyrite.settings import EngineConfig
from pyrite.source import open_model
from quantizable import quantizable


@pytest.fixture(autouse=True)
def fresh_trial():
    devices._failure_of_trial.cache_clear()
    yield
    devices._failure_of_trial.cache_clear()


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(devices, "_DRIVER_FILES", ("/no/such/file",))


@pytest.fixture
def gpu_file(monkeypatch, tmp_path):
    """A driver that is visible; whether it works is for the test to say."""
    (tmp_path / "nvidiactl").touch()
    monkeypatch.setattr(devices, "_DRIVER_FILES", (str(tmp_path / "nvidiactl"),))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def without_packages(monkeypatch):
    for name in ("torch", "triton"):
        monkeypatch.setitem(sys.modules, name, None)


def test_cpu_is_cpu(gpu_file):
    assert resolve_device("cpu") == "cpu"


def test_nothing_visible(no_gpu):
    assert not nvidia_visible() and resolve_device("auto") == "cpu"
    with pytest.raises(ConfigError, match="no NVIDIA GPU is visible") as caught:
        resolve_device("cuda")
    assert caught.value.field == "device" and caught.value.code == "no_device" and caught.value.hint


@pytest.mark.parametrize("value", ["", "-1"])
def test_hidden_by_the_environment(gpu_file, monkeypatch, value):
    assert nvidia_visible()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert not nvidia_visible() and resolve_device("auto") == "cpu"


@pytest.mark.parametrize("visible", [True, False])
def test_packages_missing(request, monkeypatch, visible):
    request.getfixturevalue("gpu_file" if visible else "no_gpu")
    without_packages(monkeypatch)
    assert resolve_device("auto") == "cpu"
    with pytest.raises(ConfigError, match="needs torch and triton") as caught:
        resolve_device("cuda")
    assert caught.value.hint == 'pip install "pyrite[cuda]"' and caught.value.code == "missing_package"


def test_a_gpu_that_does_not_work(gpu_file, monkeypatch, caplog):
    def fail():
        raise RuntimeError("CUDA driver version is insufficient\nand more")

    monkeypatch.setattr("pyrite.backends.cuda_trial.try_gpu", fail)
    assert resolve_device("auto") == "cpu"
    assert "the CPU is used" in caplog.text and "insufficient" in caplog.text
    with pytest.raises(BackendError, match="does not work: got RuntimeError: CUDA driver version is insuff") as caught:
        resolve_device("cuda")
    assert caught.value.code == "device_unusable" and caught.value.hint and "and more" not in str(caught.value)


def test_a_gpu_that_works(gpu_file, monkeypatch):
    tried = []
    monkeypatch.setattr("pyrite.backends.cuda_trial.try_gpu", lambda: tried.append(1))
    assert [resolve_device(name) for name in ("auto", "cuda", "auto")] == ["cuda"] * 3
    assert len(tried) == 1


def run_python(script: str) -> dict:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


BLOCK_TORCH = """
import sys
sys.modules["torch"] = sys.modules["triton"] = None
"""

GENERATE = """
import json, sys
from pyrite import LLM, SamplingParams
from pyrite.backends import devices
devices._DRIVER_FILES = ("/no/such/file",)
with LLM({folder!r}, max_model_len=64) as llm:
    output = llm.generate("the quick", SamplingParams(temperature=0.0, max_tokens=4), use_tqdm=False)[0]
loaded = [name for name in ("torch", "triton", "pyrite_kernels") if sys.modules.get(name) is not None]
print(json.dumps({{"ids": output.outputs[0].token_ids, "loaded": loaded}}))
"""

ASK_FOR_CUDA = """
import json
from pyrite import LLM, PyriteError
try:
    LLM({folder!r}, device="cuda")
except PyriteError as error:
    print(json.dumps({{"kind": type(error).__name__, "hint": error.hint, "field": error.field}}))
"""


def test_the_cpu_path_imports_no_torch():
    script = GENERATE.format(folder=str(MODELS["llama"]()))
    with_torch, without = run_python(script), run_python(BLOCK_TORCH + script)
    assert with_torch["loaded"] == without["loaded"] == []
    assert with_torch["ids"] == without["ids"] and without["ids"]


def test_cuda_without_torch_says_what_to_install():
    answer = run_python(BLOCK_TORCH + ASK_FOR_CUDA.format(folder=str(MODELS["llama"]())))
    assert answer == {"kind": "ConfigError", "hint": 'pip install "pyrite[cuda]"', "field": "device"}


@pytest.fixture
def plan_on_gpu(monkeypatch):
    """A function that plans on a pretended GPU with some free bytes."""

    def make(free: int, folder=None, **keywords):
        monkeypatch.setattr(pyrite.memory, "resolve_device", lambda device: "cuda")
        monkeypatch.setattr(pyrite.memory, "free_device_bytes", lambda: free)
        config = EngineConfig(**keywords)
        return plan_memory(open_for(folder or MODELS["qwen3"](), config), config)

    return make


def test_the_plan_counts_the_memory_of_the_gpu(plan_on_gpu):
    plan = plan_on_gpu(1 << 28, dtype="float16", max_num_seqs=2)
    program = fuse(open_model(MODELS["qwen3"]()).program, CUDA_FUSED_OPS)
    assert plan.device == "cuda" and plan.dtype == plan.kv_cache_dtype == "float16"
    assert plan.scratch_bytes == program.scratch_bytes(max_tokens=512, max_rows=64, itemsize=2)
    assert plan_on_gpu(1 << 28).dtype == "float32"
    with pytest.raises(ConfigError, match="dtype of the matrices"):
        plan_on_gpu(1 << 28, kv_cache_dtype="float16")
    with pytest.raises(CapacityError, match="does not fit in memory: got 1000 bytes free on cuda"):
        plan_on_gpu(1000)


@pytest.mark.parametrize("scheme", [None, "int4", "int8"])
def test_the_plan_counts_what_the_backend_holds(plan_on_gpu, scheme):
    """Padding of integer weights included."""
    folder, sizes = quantizable("qwen3_tied"), {"max_num_seqs": 2, "max_num_batched_tokens": 24, "block_size": 16}
    config = EngineConfig(quantization=scheme, dtype="float16", **sizes)
    plan = plan_on_gpu(1 << 28, folder, quantization=scheme, dtype="float16", **sizes)
    backend = cuda_backend(
        folder, scheme, dtype="float16", kv_dtype="float16", max_tokens=24, max_rows=config.max_logit_rows
    )
    held = backend.info()
    assert (plan.weight_bytes, plan.scratch_bytes) == (held["weight_bytes"], held["scratch_bytes"])


def test_free_bytes_leave_a_reserve(monkeypatch):
    fake = SimpleNamespace(cuda=SimpleNamespace(mem_get_info=lambda: (1 << 30, 1 << 34)))
    monkeypatch.setitem(sys.modules, "torch", fake)
    assert devices.free_device_bytes() == (1 << 30) - devices.CUDA_RESERVE_BYTES

    def dead():
        raise RuntimeError("CUDA error: unknown error")

    fake.cuda.mem_get_info = dead
    with pytest.raises(BackendError, match="unknown error"):
        devices.free_device_bytes()
