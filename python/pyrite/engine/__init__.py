"""The engine: one thread per `LLM` that plans, runs, samples and commits, and hands results to whoever waits."""
