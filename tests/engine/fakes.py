"""A stand-in for `pyrite._core` while it cannot be imported: one full KV group, no prefix cache, no preemption."""

from __future__ import annotations

import sys
import types

import numpy as np


class StepPlan:
    def __init__(self, work, tables, block_size):
        self.work = work
        self.seqs, self.samples, tokens, positions, rows, cu = [], [], [], [], [], [0]
        for seq, start, ids, want in work:
            first = len(rows)
            end = start + len(ids) == len(seq["ids"])
            base = len(tokens)
            if want:
                rows += range(base, base + len(ids))
            elif end:
                rows.append(base + len(ids) - 1)
            self.seqs.append((seq["id"], 0, first, len(rows) - first))
            self.samples.append(end)
            tokens += ids
            positions += range(start, start + len(ids))
            cu.append(len(tokens))
        a = lambda x: np.array(x, np.int32)  # noqa: E731
        self.token_ids, self.positions, self.logit_rows, self.cu_seqlens_q = a(tokens), a(positions), a(rows), a(cu)
        self.seq_lens = a([start + len(ids) for _, start, ids, _ in work])
        width = max(len(tables[s["id"]]) for s, *_ in work)
        self._table = np.full((len(work), width), -1, np.int32)
        slots = []
        for i, (seq, start, ids, _) in enumerate(work):
            table = tables[seq["id"]]
            self._table[i, : len(table)] = table
            slots += [table[p // block_size] * block_size + p % block_size for p in range(start, start + len(ids))]
        self._slots = a(slots)

    def block_table(self, group):
        return self._table

    def slot_mapping(self, group):
        return self._slots

    def block_copies(self, group):
        return []


class Scheduler:
    def __init__(self, *, groups, block_size, max_num_seqs, max_num_batched_tokens, max_model_len, **_):
        self.bs, self.max_seqs, self.budget, self.max_len = (
            block_size,
            max_num_seqs,
            max_num_batched_tokens,
            max_model_len,
        )
        self.free = list(range(groups[0][1]))
        self.total = len(self.free)
        self.waiting, self.running, self.tables = [], [], {}
        self.counts = dict.fromkeys(("steps", "decode_steps", "decode_tokens", "prefill_tokens", "preemptions"), 0)

    def add(self, seq_id, token_ids, *, max_tokens, stop_token_ids, prompt_logprobs, salt):
        self.waiting.append(
            {
                "id": seq_id,
                "ids": list(token_ids),
                "left": max_tokens,
                "stops": set(stop_token_ids),
                "done": 0,
                "plen": len(token_ids),
                "plp": prompt_logprobs,
            }
        )

    def plan(self):
        while self.waiting and len(self.running) < self.max_seqs:
            seq = self.waiting.pop(0)
            self.tables[seq["id"]] = []
            self.running.append(seq)
        work, budget = [], self.budget
        for seq in self.running:
            n = min(budget, len(seq["ids"]) - seq["done"])
            if n <= 0:
                continue
            table = self.tables[seq["id"]]
            while len(table) * self.bs < seq["done"] + n:
                table.append(self.free.pop())
            work.append((seq, seq["done"], seq["ids"][seq["done"] : seq["done"] + n], seq["plp"]))
            budget -= n
        return StepPlan(work, self.tables, self.bs) if work else None

    def commit(self, plan, sampled):
        self.counts["steps"] += 1
        tokens = {i: t for i, _, t in sampled}
        ended = []
        decodes = 0
        for seq, start, ids, _ in plan.work:
            if seq["id"] not in self.tables:
                continue
            seq["done"] = start + len(ids)
            if start >= seq["plen"]:
                decodes += 1
            else:
                self.counts["prefill_tokens"] += len(ids)
            for token in tokens.get(seq["id"], ()):
                seq["ids"].append(token)
                seq["left"] -= 1
                reason = "stop" if token in seq["stops"] else None
                if reason is None and (seq["left"] == 0 or len(seq["ids"]) >= self.max_len):
                    reason = "length"
                if reason:
                    ended.append((seq["id"], reason))
                    self.finish(seq["id"])
        if decodes:
            self.counts["decode_steps"] += 1
            self.counts["decode_tokens"] += decodes
        return ended

    def finish(self, seq_id):
        for queue in (self.waiting, self.running):
            for seq in queue:
                if seq["id"] == seq_id:
                    queue.remove(seq)
                    self.free += self.tables.pop(seq_id, [])
                    return True
        return False

    def has_work(self):
        return bool(self.waiting or self.running)

    def num_cached_tokens(self, seq_id):
        return 0

    def stats(self):
        used = self.total - len(self.free)
        return {
            **self.counts,
            "num_waiting": len(self.waiting),
            "num_running": len(self.running),
            "group0_total": self.total,
            "group0_free": len(self.free),
            "group0_cached": 0,
            "group0_used": used,
        }

    def check(self):
        pass


class Sampler:
    def __init__(self, **kw):
        self.__dict__.update(kw)


class Sample:
    def __init__(self, token_id, logprob, rank, top):
        self.token_id, self.logprob, self.rank, self.top = token_id, logprob, rank, top


def token_logprobs(logits, row, token_id, top):
    x = logits[row].astype(np.float64)
    lp = x - x.max() - np.log(np.exp(x - x.max()).sum())
    order = np.lexsort((np.arange(len(x)), -x))[:top]
    return float(lp[token_id]), int((x > x[token_id]).sum()) + 1, [(int(i), float(lp[i])) for i in order]


def sample(logits, requests):
    out = []
    for row, s, position in requests:
        x = logits[row][: s.vocab_limit].astype(np.float64)
        if not np.isfinite(x).any():
            out.append(None)
            continue
        if s.temperature:
            rng = np.random.default_rng([s.seed, s.stream, position])
            x = x / s.temperature + rng.gumbel(size=len(x))
        token = int(np.argmax(x))
        if s.logprobs is None:
            out.append(Sample(token, None, None, []))
        else:
            out.append(Sample(token, *token_logprobs(logits, row, token, s.logprobs)))
    return out


class StopMatcher:
    def __init__(self, stops):
        self.stops, self.held = list(stops), ""

    def push(self, text):
        self.held += text
        hits = [(self.held.find(s), i) for i, s in enumerate(self.stops) if s in self.held]
        if hits:
            at, i = min(hits, key=lambda h: (h[0] + len(self.stops[h[1]]), h[0]))
            out, self.held = self.held[:at], ""
            return out, i
        keep = 0
        for s in self.stops:
            for n in range(1, len(s)):
                if self.held.endswith(s[:n]):
                    keep = max(keep, n)
        cut = len(self.held) - keep
        out, self.held = self.held[:cut], self.held[cut:]
        return out, None

    def flush(self):
        out, self.held = self.held, ""
        return out


def install():
    module = types.ModuleType("pyrite._core")
    for value in (Scheduler, Sampler, Sample, StepPlan, StopMatcher, sample, token_logprobs):
        setattr(module, value.__name__, value)
    sys.modules["pyrite._core"] = module
    import pyrite

    pyrite._core = module
