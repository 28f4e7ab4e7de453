"""Checkpoint tensors: reading them, and checking that a folder holds what a program needs and nothing else."""
