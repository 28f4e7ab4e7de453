"""Shared by all tests. Its place puts `tests/` on the import path, so that `import tiny_models` works everywhere."""
