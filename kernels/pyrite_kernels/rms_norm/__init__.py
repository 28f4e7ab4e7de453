"""The op `rms_norm` and its forms that quantize: kernel, launch, plain twins and cases."""
