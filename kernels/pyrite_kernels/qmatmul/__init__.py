"""The op `qmatmul`: kernel, launch, plain twin and cases. The weight is in `pyrite_kernels.quantized`."""
