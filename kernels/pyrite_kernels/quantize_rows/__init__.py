"""The op `quantize_rows`: rows to 8-bit codes and scales, where no norm comes before; kernel, launch, twins, cases."""
