"""The op `int8_matmul`: 8-bit integer rows times an 8-bit integer weight; kernel, launch, plain twin and cases."""
