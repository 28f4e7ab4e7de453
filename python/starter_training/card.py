"""Write the model card from what was measured: `python -m starter_training.card --model FOLDER --run DIR`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

TEXT = (Path(__file__).parent / "card.md").read_text(encoding="utf-8")


def score_table(result: dict) -> str:
    """One line per kind with the score at low and at high strength."""
    low, high = result["low"]["by_kind"], result["high"]["by_kind"]
    lines = ["| kind | low | high |", "|---|---|---|"]
    return "\n".join(lines + [f"| {kind} | {low[kind]} | {high[kind]} |" for kind in sorted(low)])


def write_card(folder: Path, run: Path) -> str:
    """Fill card.md with the numbers of evaluation.json and of the run's training.json."""
    result = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    training = json.loads((run / "training.json").read_text(encoding="utf-8"))
    values = {
        "parameters": f"{result['parameters']:,}".replace(",", " "),
        "megabytes": f"{(folder / 'model.safetensors').stat().st_size / 1e6:.1f}",
        "tokens": f"{training['tokens'] / 1e6:.1f}",
        "steps": f"{training['step']}",
        "minutes": f"{training['minutes']:.0f}",
        "questions": f"{result['low']['questions']}",
        "low": f"{100 * result['low']['accuracy']:.1f} %",
        "high": f"{100 * result['high']['accuracy']:.1f} %",
        "low_ended": f"{100 * result['low']['ended']:.1f} %",
        "high_ended": f"{100 * result['high']['ended']:.1f} %",
        "perplexity": f"{result['documents']['perplexity']}",
        "bits": f"{result['documents']['bits_per_character']}",
        "documents": f"{result['documents']['documents']}",
        "table": score_table(result),
    }
    text = TEXT
    for name, value in values.items():
        text = text.replace(f"<<{name}>>", value)
    return text


def main() -> None:
    """Parse the command line and write README.md into the model folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    args = parser.parse_args()
    (args.model / "README.md").write_text(write_card(args.model, args.run), encoding="utf-8")


if __name__ == "__main__":
    main()
