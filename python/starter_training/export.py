"""Turn a training checkpoint into the shipped folder: `python -m starter_training.export --run DIR --out FOLDER`."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import GenerationConfig, MuseGlimmerForConditionalGeneration

from .model import Decoder, make_config, to_transformers_names
from .train import token_ids

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
MAX_BYTES = 12 * 2**20


def check_same(model: MuseGlimmerForConditionalGeneration, twin: Decoder) -> float:
    """Return the largest difference of logits between transformers' model and the training twin, both in f32."""
    ids = torch.randint(0, 2000, (1, 256), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return (model(input_ids=ids).logits - twin.logits(twin(ids))).abs().max().item()


def export(run: Path, out: Path) -> None:
    """Write config, weights (bfloat16), generation settings and tokenizer of a run into `out`.

    Raises:
        ValueError: the exported model does not compute what was trained, or the folder is over 12 MiB.
    """
    tokenizer = Tokenizer.from_file(str(run / "tokenizer.json"))
    ids = token_ids(tokenizer)
    config = make_config(ids)
    state = torch.load(run / "checkpoint.pt", weights_only=True)["model"]
    twin = Decoder(config)
    twin.load_state_dict(state)
    torch.manual_seed(0)  # the vision half is not trained: small random weights
    model = MuseGlimmerForConditionalGeneration(config).eval()
    keys = model.load_state_dict(to_transformers_names(state), strict=False)
    if keys.unexpected_keys or any("vision" not in key for key in keys.missing_keys):
        raise ValueError(f"checkpoint does not fit, unexpected {keys.unexpected_keys}, missing {keys.missing_keys}")
    if (gap := check_same(model, twin)) > 1e-3:
        raise ValueError(f"got logits {gap} apart from the trained model, expected under 1e-3")
    model.generation_config = GenerationConfig(
        bos_token_id=ids["bos"], eos_token_id=[ids["eos"], ids["eot"]], pad_token_id=ids["pad"], do_sample=False
    )
    out.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)
    for name in TOKENIZER_FILES:
        shutil.copyfile(run / name, out / name)
    size = sum(file.stat().st_size for file in out.iterdir())
    if size > MAX_BYTES:
        raise ValueError(f"got a folder of {size} bytes, expected at most {MAX_BYTES}")
    print(f"{sum(p.numel() for p in model.parameters())} parameters, {size} bytes, logits within {gap:.1e} of the twin")


def main() -> None:
    """Parse the command line and export."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder that train wrote")
    parser.add_argument("--out", type=Path, required=True, help="model folder to write")
    args = parser.parse_args()
    export(args.run, args.out)


if __name__ == "__main__":
    main()
