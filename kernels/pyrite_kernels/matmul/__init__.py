"""The op `matmul`, and `matmul_glu`: kernel, launch, plain twins and cases."""
