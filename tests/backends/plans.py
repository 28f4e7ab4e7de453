"""Hand-made plans and engines on the CUDA backend and on its oracle, with very small models."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pyrite import _core
from pyrite.backends.base import Backend
from pyrite.backends.cuda import CudaBackend
from pyrite.backends.torch_ref import TorchReference
from pyrite.engine.engine import Engine
from pyrite.models import Program, load_config, record
from pyrite.models.quantize import assign_schemes
from pyrite.outputs import RequestOutput
from pyrite.params import SamplingParams
from pyrite.quant.schemes import quantization
from pyrite.request import AdmissionGate, parse_prompts
from pyrite.weights.reader import Weights, open_weights
from tiny_models import EOS, ORDINARY_IDS, SafetensorsSource, tiny

BLOCK_SIZE = 16
NUM_BLOCKS = 24
MAX_MODEL_LEN = 96
MAX_SEQS = 4
MAX_TOKENS = 24

SMALL = {"intermediate_size": 32}
MODELS: dict[str, Path] = {
    "llama": functools.partial(tiny, "llama", **SMALL, num_hidden_layers=1),
    "qwen3": functools.partial(tiny, "qwen3", **SMALL, num_hidden_layers=2),
    "muse_glimmer": functools.partial(tiny, "muse_glimmer", **SMALL, num_hidden_layers=4),
}
"""Folders by family: one layer of each kind that the family has. Call one to make it."""


def prompt(length: int, seed: int = 0) -> list[int]:
    """Random ordinary ids."""
    return np.random.default_rng([length, seed]).choice(ORDINARY_IDS, length).tolist()


def program_of(folder: Path, scheme: str | None = None) -> Program:
    program = record(load_config(folder))
    return program if scheme is None else assign_schemes(program, quantization(scheme))


def cuda_backend(folder: Path, scheme: str | None = None, **options) -> CudaBackend:
    """The CUDA backend on CPU tensors."""
    program = program_of(folder, scheme)
    sizes = {
        "block_size": BLOCK_SIZE,
        "num_blocks": [NUM_BLOCKS] * len(program.kv_groups),
        "max_tokens": MAX_TOKENS,
        "max_rows": MAX_TOKENS,
        "max_seqs": MAX_SEQS,
        "max_model_len": MAX_MODEL_LEN,
        "dtype": "float32",
        "kv_dtype": "float32",
        "device": "cpu",
    }
    return CudaBackend(program, open_weights(folder), **{**sizes, **options})


def reference_backend(folder: Path, scheme: str | None = None) -> TorchReference:
    """The oracle, which takes inputs as they are, as the CUDA backend does."""
    program = program_of(folder, scheme)
    return TorchReference(
        program,
        Weights(SafetensorsSource(folder)),
        block_size=BLOCK_SIZE,
        num_blocks=[NUM_BLOCKS] * len(program.kv_groups),
        quantized_inputs="float",
    )


class BatchPlan:
    """The next tokens of several sequences, each (tokens already stored, token ids of this step, blocks it owns).

    Args:
        logits: "all" rows, the "last" of each sequence, or "none".
    """

    def __init__(self, seqs: Sequence[tuple[int, Sequence[int], Sequence[int]]], num_groups: int, logits: str) -> None:
        counts = [len(ids) for _, ids, _ in seqs]
        self.token_ids = np.concatenate([np.array(ids, np.int32) for _, ids, _ in seqs])
        self.positions = np.concatenate([np.arange(n, n + len(ids), dtype=np.int32) for n, ids, _ in seqs])
        self.cu_seqlens_q = np.array([0, *np.cumsum(counts)], np.int32)
        self.seq_lens = np.array([n + len(ids) for n, ids, _ in seqs], np.int32)
        rows = {"all": np.arange(len(self.token_ids)), "last": self.cu_seqlens_q[1:] - 1, "none": []}[logits]
        self.logit_rows = np.array(rows, np.int32)
        width = max(len(blocks) for _, _, blocks in seqs)
        self.table = np.array([[*blocks, *[-1] * (width - len(blocks))] for _, _, blocks in seqs], np.int32)
        owner = np.repeat(np.arange(len(seqs)), counts)
        self.slots = self.table[owner, self.positions // BLOCK_SIZE] * BLOCK_SIZE + self.positions % BLOCK_SIZE
        self.copies: list[tuple[int, int]] = []
        self.num_groups = num_groups

    def block_table(self, group: int) -> np.ndarray:
        return self.table

    def slot_mapping(self, group: int) -> np.ndarray:
        return self.slots.astype(np.int32)

    def block_copies(self, group: int) -> list[tuple[int, int]]:
        return self.copies


class Rig:
    """An engine on a backend, asked with token ids."""

    def __init__(self, folder: Path, backend: Backend) -> None:
        program = program_of(folder)
        self.backend = backend
        self.scheduler = _core.Scheduler(
            groups=[(group.window, NUM_BLOCKS) for group in program.kv_groups],
            block_size=BLOCK_SIZE,
            max_num_seqs=MAX_SEQS,
            max_num_batched_tokens=MAX_TOKENS,
            max_logit_rows=MAX_TOKENS,
            max_model_len=MAX_MODEL_LEN,
            enable_prefix_caching=True,
            hash_key=7,
        )
        self.engine = Engine(self.scheduler, backend, vocab_limit=ORDINARY_IDS.stop)
        self.gate = AdmissionGate(
            None, vocab_size=program.vocab_size, max_model_len=MAX_MODEL_LEN, eos_token_ids=[EOS], seed=1
        )

    def generate(self, prompts: Sequence[Sequence[int]], **params) -> list[RequestOutput]:
        asked = parse_prompts([{"prompt_token_ids": list(ids)} for ids in prompts])
        requests = self.gate.admit(asked, SamplingParams(ignore_eos=True, **params))
        outputs = dict(self.engine.run(requests))
        return [outputs[index] for index in range(len(requests))]

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, *exc: object) -> None:
        self.engine.close()
