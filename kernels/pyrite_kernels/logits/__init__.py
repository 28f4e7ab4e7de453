"""The ops on logits, `scale_softcap` and `select_candidates`: kernels, launches, plain twins and cases."""
