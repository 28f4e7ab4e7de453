"""Importing the package is cheap."""

from __future__ import annotations

import subprocess
import sys


def test_heavy_modules_wait_until_they_are_used() -> None:
    heavy = ("jinja2", "tokenizers", "torch", "transformers")
    code = f"import sys, pyrite.text; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
