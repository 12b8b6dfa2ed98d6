"""Data: synthetic tasks with known truth, real text, the data folder, and batches as a pure function of (seed, step)."""
