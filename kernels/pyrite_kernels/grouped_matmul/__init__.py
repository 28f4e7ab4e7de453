"""The op `grouped_matmul`, and `sort_by_expert` that prepares its rows: kernels, launches, plain twins and cases."""
