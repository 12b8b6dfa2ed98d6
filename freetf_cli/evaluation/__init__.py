"""Evaluation of checkpoints: metrics, comparison, and probes of the latent."""
