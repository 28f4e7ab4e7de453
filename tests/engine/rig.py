"""An engine on the hash model with its admission gate, as tests use it."""

from __future__ import annotations

import time

from hash_model import EOS, VOCAB_LIMIT, VOCAB_SIZE, ByteTokenizer, ByteVocabulary, HashModel
from pyrite import _core
from pyrite.engine.engine import Engine
from pyrite.outputs import RequestOutput
from pyrite.params import SamplingParams
from pyrite.request import AdmissionGate, Request, parse_prompts


class Rig:
    def __init__(
        self,
        *,
        groups=((None, 64),),
        block_size: int = 16,
        max_num_seqs: int = 8,
        max_num_batched_tokens: int = 64,
        max_model_len: int = 256,
        seed: int | None = 1,
        enable_prefix_caching: bool = True,
    ) -> None:
        self.groups = groups
        self.backend = HashModel(groups, block_size)
        self.scheduler = _core.Scheduler(
            groups=groups,
            block_size=block_size,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_logit_rows=max(max_num_seqs, 16),
            max_model_len=max_model_len,
            enable_prefix_caching=enable_prefix_caching,
            hash_key=7,
        )
        self.engine = Engine(self.scheduler, self.backend, vocabulary=ByteVocabulary(), vocab_limit=VOCAB_LIMIT)
        self.gate = AdmissionGate(
            ByteTokenizer(), vocab_size=VOCAB_SIZE, max_model_len=max_model_len, eos_token_ids=[EOS], seed=seed
        )

    def requests(self, prompts: object, params: object = None) -> list[Request]:
        return self.gate.admit(parse_prompts(prompts), params)

    def generate(self, prompts: object, params: object = None) -> list[RequestOutput]:
        requests = self.requests(prompts, params)
        outputs = dict(self.engine.run(requests))
        return [outputs[index] for index in range(len(requests))]

    def one(self, prompt: object, **params) -> RequestOutput:
        return self.generate(prompt, SamplingParams(**params))[0]

    def stream(self, prompt: object, **params):
        return self.engine.stream(self.requests(prompt, SamplingParams(**params))[0])

    def wait_idle(self, timeout_s: float = 5.0) -> dict[str, float]:
        deadline = time.monotonic() + timeout_s
        while True:
            metrics = self.engine.metrics()
            if not metrics["num_running"] and not metrics["num_waiting"]:
                return metrics
            assert time.monotonic() < deadline, metrics
            time.sleep(0.005)

    def check_idle(self) -> None:
        """Nothing runs, and free and cached blocks are all there are."""
        metrics = self.wait_idle()
        for group in range(len(self.groups)):
            total = metrics[f"group{group}_total"]
            assert metrics[f"group{group}_used"] == 0
            assert metrics[f"group{group}_free"] + metrics[f"group{group}_cached"] == total
        self.scheduler.check()
