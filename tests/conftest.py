"""Shared by all tests. Its place puts `tests/` on the import path, so that `import tiny_models` works everywhere."""

import os

# Tests leave nothing in the user's cache; those of packed files name a folder of their own.
os.environ["PYRITE_CACHE_DIR"] = "off"
