"""Backends: each runs a recorded program on one kind of device."""
