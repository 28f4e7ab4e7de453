"""The command line, as a process: output, exit codes, and errors without a traceback."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from tiny_models import tiny


def pyrite(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pyrite", *arguments], capture_output=True, text=True, timeout=60, input=stdin
    )


@pytest.fixture(scope="module")
def folder():
    return str(tiny("muse_glimmer"))


def test_help_names_the_commands():
    done = pyrite("--help")
    assert done.returncode == 0
    for command in ("generate", "info", "env"):
        assert command in done.stdout


def test_help_imports_nothing_heavy():
    script = "import sys, pyrite.cli as c; sys.argv[1:] = ['--help']\ntry: c.main()\nexcept SystemExit: pass\n"
    script += "print(sorted({'torch', 'numpy', 'tokenizers', 'transformers', 'huggingface_hub'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_info(folder):
    facts = json.loads(pyrite("info", folder, "--json").stdout)
    assert facts["architecture"] == "MuseGlimmerForConditionalGeneration"
    assert facts["num_layers"] == 7 and facts["num_heads"] == 6 and facts["head_dim"] == 24
    assert {group["window"] for group in facts["kv_groups"]} == {None, 17}
    parts = (facts["weight_bytes"], facts["kv_bytes"], facts["scratch_bytes"], facts["logits_bytes"])
    assert facts["total_bytes"] == sum(parts)
    assert facts["skipped_tensors"] > 0
    text = pyrite("info", folder).stdout
    assert "MuseGlimmerForConditionalGeneration" in text and "window 17" in text


def test_info_says_what_a_quantization_does(folder):
    facts = json.loads(pyrite("info", folder, "--json", "--quantization", "int4_g32").stdout)
    assert facts["quantization"] == "int4_g32"
    assert facts["kept_float"] == [
        "7 layers.*.o: 144 inputs, groups of 32",
        "7 layers.*.down: 80 inputs, groups of 32",
        "1 head: 96 inputs, groups of 64",
    ]
    assert facts["weight_bytes"] < json.loads(pyrite("info", folder, "--json").stdout)["weight_bytes"]
    text = pyrite("info", folder, "--quantization", "int8_g32").stdout
    assert "7 layers.*.o: 144 inputs, groups of 32; 7 layers.*.down" in text


def test_env():
    facts = json.loads(pyrite("env", "--json").stdout)
    assert facts["physical_cores"] >= 1 and facts["isa"] in facts["isa_levels"]
    assert facts["PYRITE_LOG"] == "warning"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("info", "/no/such/folder"), "no such model folder"),
        (("generate", "hi", "--model", "/no/such/folder"), "no such model folder"),
        (("info", "--max-num-seqs", "0"), "max_num_seqs: out of range"),
    ],
)
def test_errors_of_the_user(arguments, message):
    done = pyrite(*arguments)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) <= 2


def test_usage_error():
    done = pyrite("bogus")
    assert done.returncode == 2 and "bogus" in done.stderr and "Traceback" not in done.stderr
