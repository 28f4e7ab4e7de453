"""The op `paged_decode`: kernel, launch, plain twin and cases."""
