"""The engines that `bench/e2e` compares: pyrite through its public API, and peers that lie in one folder.

A workload is a kind and a size: `decode_N` after N tokens of context, `prefill_N` of a prompt of N tokens, `batch_N`
of N sequences that decode together from a short context. All speeds are in tokens per second. `peers.sh` fills the
folder: `llama/bin`, `llama-avx2/bin` and `ik/bin` with the tools of llama.cpp and ik_llama.cpp, `ov/bin/python` with
OpenVINO GenAI, and the GGUF files of a model as `NAME-TYPE.gguf`.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np

DECODE_TOKENS = 48
LONGEST_CONTEXT = 1 << 15
SHORT_PROMPT = 8
CHECK_TOKENS = 8
REST_S = 1.0
"""Before pyrite is measured: it makes memory of its KV cache present while nothing runs. llama.cpp clears its cache
when it makes it, before the clock starts."""


class Engine(Protocol):
    """What is measured."""

    def measure(self, workload: str, seed: int) -> float:
        """Tokens per second of one workload; prompts follow from `seed`."""
        ...

    def check(self) -> str:
        """Generate twice and compare; says what was found. Raises AssertionError when they differ."""
        ...

    def weight_bytes(self) -> int:
        """Bytes of all weights as the engine was given them."""
        ...

    def kv_bytes_per_token(self, values: int) -> float:
        """Bytes that a token of context takes, of so many keys and values."""
        ...

    def version(self) -> str:
        """What it is, exactly."""
        ...


def parse(workload: str) -> tuple[str, int]:
    """`"decode_2048"` as its kind and size."""
    kind, _, size = workload.partition("_")
    if kind not in ("decode", "prefill", "batch") or not size.isdigit():
        raise ValueError(f"no workload {workload!r}: expected decode_N, prefill_N or batch_N")
    return kind, int(size)


def prompt(num_tokens: int, vocab: int, seed: int) -> list[int]:
    """Random token ids; prompts of two lengths or two seeds share no beginning."""
    return np.random.default_rng([num_tokens, seed]).integers(5, vocab, num_tokens).tolist()


class Pyrite:
    """pyrite through its public API. A context is filled once and found in the prefix cache from then on."""

    def __init__(
        self,
        folder: str,
        quantization: str | None,
        threads: int,
        *,
        longest: int = 512,
        sequences: int = 16,
        kv_cache_dtype: str = "auto",
        **keywords: Any,
    ) -> None:
        from pyrite import LLM, plan

        self.vocab, self.folder, self.quantization = 0, folder, quantization
        sizes: dict[str, Any] = {
            "max_model_len": longest + 2 * DECODE_TOKENS,
            "max_num_seqs": sequences,
            "quantization": quantization,
            "kv_cache_dtype": kv_cache_dtype,
            **keywords,
        }
        one = plan(folder, **{**sizes, "max_num_seqs": 1, "kv_cache_memory": None})
        per_token = self._kv_bytes = one.kv_bytes / one.capacity_tokens
        tokens = longest + 4096 + sequences * (SHORT_PROMPT + 2 * DECODE_TOKENS)
        self.llm = LLM(folder, num_threads=threads, kv_cache_memory=int(tokens * per_token), **sizes)
        self.vocab = self.llm.tokenizer.vocab_size

    def run(self, prompts: list[list[int]], count: int) -> list[Any]:
        """Greedy continuations."""
        from pyrite import SamplingParams

        params = SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True)
        return self.llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)

    def tokens(self, lengths: list[int]) -> list[list[int]]:
        """Token ids of a few continuations."""
        prompts = [prompt(n, self.vocab, 0) for n in lengths]
        return [list(result.outputs[0].token_ids) for result in self.run(prompts, CHECK_TOKENS)]

    def check(self) -> str:
        """The same tokens alone and in a batch."""
        assert self.tokens([24, 9, 40])[0] == self.tokens([24])[0], "tokens depend on the batch"
        return "equal tokens alone and in a batch of three"

    def measure(self, workload: str, seed: int) -> float:
        """See `Engine`."""
        kind, size = parse(workload)
        time.sleep(REST_S)
        if kind == "prefill":
            return size / (self.run([prompt(size, self.vocab, seed)], 1)[0].metrics.ttft_ms / 1e3)
        if kind == "batch":
            prompts = [prompt(SHORT_PROMPT, self.vocab, seed + i) for i in range(size)]
            return size * 1e3 / statistics.median(done.metrics.tpot_ms for done in self.run(prompts, DECODE_TOKENS))
        context = prompt(LONGEST_CONTEXT, self.vocab, 0)[: max(size, SHORT_PROMPT)]  # one beginning for all
        return 1e3 / self.run([context], DECODE_TOKENS)[0].metrics.tpot_ms

    def weight_bytes(self) -> int:
        """Bytes of the packed weights."""
        from pyrite import plan

        return plan(self.folder, quantization=self.quantization).weight_bytes

    def kv_bytes_per_token(self, values: int) -> float:
        """Scales included."""
        return self._kv_bytes

    def version(self) -> str:
        """The package's."""
        import pyrite

        return f"pyrite {pyrite.__version__}"


class LlamaCpp:
    """llama-bench and llama-batched-bench, one process a measurement, with prompts of their own.

    Args:
        binaries: folder of the tools.
        gguf: the model.
        vocab: rows of the head.
        repack: whether weights are interleaved at load ("-rtr 1" in ik_llama.cpp).
        limit_s: seconds after which a call of a tool is given up; None waits for ever.
    """

    def __init__(
        self,
        binaries: Path,
        gguf: Path,
        threads: int,
        vocab: int,
        *,
        repack: bool = True,
        limit_s: float | None = None,
    ) -> None:
        self.binaries, self.gguf, self.threads, self.vocab = binaries, gguf, threads, vocab
        self.repack, self.limit_s = repack, limit_s
        self.common = ["-m", str(gguf), "-t", str(threads), "-fa", "1", "-lm", "none"]

    def check(self) -> str:
        """Equal greedy tokens and finite logits in two runs."""
        first, second = self.tokens(self.repack), self.tokens(self.repack)
        assert first == second and len(first) == CHECK_TOKENS, f"{self.binaries} differs from itself"
        return "equal greedy tokens and finite logits in two runs"

    def tokens(self, repack: bool) -> list[str]:
        """Greedy tokens."""
        flags = [str(self.gguf), str(self.threads), str(int(repack)), str(self.vocab), str(CHECK_TOKENS)]
        return self.call("greedy", [*flags, *map(str, prompt(24, 4000, 0))]).stdout.split()

    def measure(self, workload: str, seed: int) -> float:
        """See `Engine`."""
        del seed  # its prompts are its own
        kind, size = parse(workload)
        if kind == "batch":
            return self.batches([size])[size]
        flags = ["-p", str(size), "-n", "0"] if kind == "prefill" else self.decode_flags(0 if size <= 8 else size)
        lines = self.call("llama-bench", [*self.common, *flags, "-r", "1", "-o", "json", *self.repack_flags()]).stdout
        return float(json.loads(lines)[-1]["avg_ts"])

    def batches(self, sequences: list[int]) -> dict[int, float]:
        """Tokens per second of all sequences together, by their number."""
        flags = ["-c", "2048", "-b", "2048", "-ub", "512", "-npp", str(SHORT_PROMPT), "-ntg", str(DECODE_TOKENS)]
        flags += ["-npl", ",".join(map(str, sequences)), "--output-format", "jsonl", *([] if self.repack else ["-nr"])]
        lines = self.call("llama-batched-bench", [*self.common, *flags]).stdout.splitlines()
        rows = [json.loads(line) for line in lines if line.startswith("{")]
        return {row["pl"]: float(row["speed_tg"]) for row in rows}

    def decode_flags(self, depth: int) -> list[str]:
        """Of llama-bench, for a decode after `depth` tokens."""
        return ["-p", "0", "-n", str(DECODE_TOKENS), "-d", str(depth)]

    def repack_flags(self) -> list[str]:
        """Of llama-bench."""
        return ["--repack", str(int(self.repack))]

    def call(self, binary: str, flags: list[str]) -> subprocess.CompletedProcess[str]:
        """Run a tool in its own folder: some leave log files where they run.

        Raises:
            subprocess.CalledProcessError: it failed.
            subprocess.TimeoutExpired: it took longer than `limit_s`.
        """
        return subprocess.run(
            [str(self.binaries / binary), *flags],
            capture_output=True,
            text=True,
            errors="replace",
            check=True,
            cwd=self.binaries,
            timeout=self.limit_s,
        )

    def weight_bytes(self) -> int:
        """Bytes of the file, its metadata included."""
        return self.gguf.stat().st_size

    def kv_bytes_per_token(self, values: int) -> float:
        """Keys and values are f16 by default."""
        return 2.0 * values

    def version(self) -> str:
        """What peers.sh built."""
        return (self.binaries / "stamp").read_text().strip()


class IkLlamaCpp(LlamaCpp):
    """ik_llama.cpp with run-time repacking; its batched-bench prints no JSON, and aborts on several sequences."""

    def __init__(self, binaries: Path, gguf: Path, threads: int, vocab: int) -> None:
        super().__init__(binaries, gguf, threads, vocab)
        self.common = ["-m", str(gguf), "-t", str(threads), "-fa", "1"]

    def check(self) -> str:
        """As llama.cpp, and whether repacked weights give the tokens of those that are not."""
        found = super().check()
        same = self.tokens(False)[0] == self.tokens(True)[0]
        return found if same else f"{found}, BUT another first token than with -rtr 0"

    def decode_flags(self, depth: int) -> list[str]:
        """Of llama-bench: a prompt of `depth` tokens, then the timed decode."""
        return ["-p", "0", "-n", "0", "-gp", f"{depth},{DECODE_TOKENS}"] if depth else ["-p", "0", "-n", "48"]

    def repack_flags(self) -> list[str]:
        """Of llama-bench."""
        return ["-rtr", "1"]


class OpenVino:
    """OpenVINO GenAI's LLMPipeline over its own GGUF reader, in a process of its own environment."""

    def __init__(self, python: Path, gguf: Path, threads: int) -> None:
        self.gguf = gguf
        child = Path(__file__).with_name("openvino_child.py")
        command = [str(python), str(child), str(gguf), str(threads)]
        self.child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._version = self.ask({})["version"]

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """One request and its answer, a JSON line each."""
        assert self.child.stdin is not None and self.child.stdout is not None
        self.child.stdin.write(json.dumps(request) + "\n")
        self.child.stdin.flush()
        while line := self.child.stdout.readline():  # its libraries print there, too
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"OpenVINO GenAI ended with status {self.child.wait()}")

    def check(self) -> str:
        """Equal greedy tokens in two runs."""
        request = {"prompts": [prompt(24, 4000, 0)], "count": CHECK_TOKENS}
        first, second = self.ask(request)["tokens"], self.ask(request)["tokens"]
        assert first == second and len(first[0]) == CHECK_TOKENS, "OpenVINO GenAI differs from itself"
        return "equal greedy tokens in two runs"

    def measure(self, workload: str, seed: int) -> float:
        """See `Engine`."""
        kind, size = parse(workload)
        if kind == "prefill":
            return size / self.ask({"prompts": [prompt(size, 4000, seed)], "count": 1})["ttft_s"]
        many, length = (size, SHORT_PROMPT) if kind == "batch" else (1, max(size, SHORT_PROMPT))
        prompts = [prompt(length, 4000, seed + i) for i in range(many)]
        return many / self.ask({"prompts": prompts, "count": DECODE_TOKENS})["tpot_s"]

    def weight_bytes(self) -> int:
        """Bytes of the GGUF file; what the plugin makes of it is its own."""
        return self.gguf.stat().st_size

    def kv_bytes_per_token(self, values: int) -> float:
        """Keys and values have 8 bits by default on a CPU; their scales are left out."""
        return float(values)

    def version(self) -> str:
        """The package's."""
        return f"OpenVINO GenAI {self._version}"
