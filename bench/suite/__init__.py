"""The benchmarks of the Triton kernels, for `bench/gpu_suite.py` and for `pytest bench/kernels`."""
