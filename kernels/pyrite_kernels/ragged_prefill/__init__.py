"""The op `ragged_prefill`: kernel, launch, plain twin and cases."""
