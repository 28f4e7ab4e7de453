"""The op `fp8_matmul`: e4m3 rows times an e4m3 weight, scaled per channel or per block; kernel, launch, twin, cases."""
