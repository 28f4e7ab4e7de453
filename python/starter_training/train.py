"""Train the starter model: `python -m starter_training.train --out DIR --minutes 60`.

The learning rate follows the clock (progress = elapsed / budget), so the schedule ends on time on any machine.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from . import chat
from .corpus import rows, tokenizer_texts
from .model import Decoder, make_config
from .tokenizer import save_tokenizer, train_tokenizer

LENGTH, ROWS = 512, 8
CHECKPOINT_MINUTES = 4.0


def token_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Look up the ids that the configuration names."""
    names = {
        "bos": chat.BOS,
        "eos": chat.EOS,
        "eot": chat.EOT,
        "pad": chat.PAD,
        "image": chat.IMAGE,
        "video": chat.VIDEO,
    }
    return {key: tokenizer.token_to_id(name) for key, name in names.items()}


class Optimizer:
    """Muon for the matrices inside the layers, AdamW for everything else; one learning-rate factor for both."""

    def __init__(self, model: Decoder, lr: float, matrix_lr: float) -> None:
        inner = [p for n, p in model.named_parameters() if p.dim() == 2 and n.startswith("layers.")]
        names = {id(p) for p in inner}
        tables = [p for p in model.parameters() if p.dim() == 2 and id(p) not in names]
        vectors = [p for p in model.parameters() if p.dim() == 1]
        groups = [{"params": tables, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
        self.parts: list[torch.optim.Optimizer] = []
        if matrix_lr > 0:
            self.parts.append(
                torch.optim.Muon(inner, lr=matrix_lr, weight_decay=0.05, momentum=0.95, adjust_lr_fn="match_rms_adamw")
            )
        else:
            groups.append({"params": inner, "weight_decay": 0.05})
        self.parts.append(torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), eps=1e-9))
        self.peaks = [[g["lr"] for g in part.param_groups] for part in self.parts]

    def step(self, factor: float) -> None:
        """Apply one update at `factor` times the peak rates and clear the gradients."""
        for part, peaks in zip(self.parts, self.peaks, strict=True):
            for group, peak in zip(part.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            part.step()
            part.zero_grad(set_to_none=True)


def schedule(step: int, progress: float) -> float:
    """Warm up over 60 steps, then fall along a cosine to 2 %."""
    warm = min(1.0, (step + 1) / 60)
    return warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))


def save(path: Path, model: Decoder, optimizer: Optimizer, facts: dict[str, float]) -> None:
    """Write a checkpoint under a temporary name, then move it in place."""
    state = {"model": model.state_dict(), "optimizer": [p.state_dict() for p in optimizer.parts], "facts": facts}
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the tokenizer, checkpoints and the log")
    parser.add_argument("--minutes", type=float, default=60.0, help="wall-clock budget of this run")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--lr", type=float, default=2e-3, help="peak rate of AdamW")
    parser.add_argument("--matrix-lr", type=float, default=4e-3, help="peak rate of Muon; 0 uses AdamW everywhere")
    parser.add_argument("--f32", action="store_true", help="do not use bfloat16 autocast")
    parser.add_argument(
        "--compile", action="store_true", help="compile the layers with torch.compile (needs a C++ compiler)"
    )
    parser.add_argument("--resume", type=Path, help="start from the weights and moments of this checkpoint")
    args = parser.parse_args()

    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    if not (args.out / "tokenizer.json").exists():
        save_tokenizer(train_tokenizer(tokenizer_texts(0, 60_000)), args.out)
    tokenizer = Tokenizer.from_file(str(args.out / "tokenizer.json"))
    model = Decoder(make_config(token_ids(tokenizer)))
    optimizer = Optimizer(model, args.lr, args.matrix_lr)
    tokens, step, earlier = 0, 0, 0.0
    if args.resume:
        state = torch.load(args.resume, weights_only=True)
        model.load_state_dict(state["model"])
        for part, saved in zip(optimizer.parts, state["optimizer"], strict=True):
            part.load_state_dict(saved)
        tokens, step, earlier = state["facts"]["tokens"], state["facts"]["step"], state["facts"]["minutes"]
    print(f"{sum(p.numel() for p in model.parameters())} parameters in the text decoder", flush=True)

    if args.compile:
        for layer in model.layers:
            layer.compile(dynamic=False)
    stream = rows(tokenizer, args.seed * 1000 + int(earlier * 10), LENGTH)
    begin = last_save = last_log = time.monotonic()
    total, seen, first = 0.0, 0, step
    while (elapsed := (time.monotonic() - begin) / 60) < args.minutes:
        batch = [next(stream) for _ in range(ROWS)]
        ids = torch.from_numpy(np.stack([r[0] for r in batch]))
        counted = torch.from_numpy(np.stack([r[1] for r in batch]))
        targets = torch.where(counted, ids, -100)[:, 1:].contiguous()
        with torch.autocast("cpu", torch.bfloat16, enabled=not args.f32):
            loss = model.loss(ids[:, :-1].contiguous(), targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(schedule(step, elapsed / args.minutes))
        step, tokens = step + 1, tokens + LENGTH * ROWS
        total, seen = total + loss.item(), seen + 1
        if seen == 20:
            now = time.monotonic()
            rate = seen * LENGTH * ROWS / (now - last_log)
            print(
                f"step {step} tokens {tokens} minutes {elapsed:.2f} loss {total / seen:.4f} tok/s {rate:.0f}",
                flush=True,
            )
            total, seen, last_log = 0.0, 0, now
        facts = {"tokens": tokens, "step": step, "minutes": earlier + elapsed, "loss": loss.item()}
        if time.monotonic() - last_save > CHECKPOINT_MINUTES * 60:
            save(args.out / "checkpoint.pt", model, optimizer, facts)
            last_save = time.monotonic()
    save(args.out / "checkpoint.pt", model, optimizer, facts)
    (args.out / "training.json").write_text(json.dumps(facts | {"steps_this_run": step - first}, indent=2) + "\n")


if __name__ == "__main__":
    main()
