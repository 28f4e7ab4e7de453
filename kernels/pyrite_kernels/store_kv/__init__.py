"""The op `store_kv`: kernel, launch, plain twin and cases."""
