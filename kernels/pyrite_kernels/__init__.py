"""Triton kernels of pyrite, useful without pyrite: they need torch and triton alone."""
