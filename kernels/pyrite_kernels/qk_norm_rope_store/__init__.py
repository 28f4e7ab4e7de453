"""The op `qk_norm_rope_store`: kernel, launch, plain twin and cases."""
