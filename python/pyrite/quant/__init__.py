"""Integer weights: what a scheme is, the schemes by name, and the exact definition that every backend must meet."""
