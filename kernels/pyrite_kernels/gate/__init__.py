"""The op `gate`: kernel, launch, plain twin and cases."""
