"""The op `glu`: kernel, launch, plain twin and cases."""
