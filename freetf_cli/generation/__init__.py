"""Generation of sequences."""
