"""The op `embed`: kernel, launch, plain twin and cases."""
