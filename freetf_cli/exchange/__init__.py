"""Export runs to Hugging Face folders, import such folders as runs, and export metrics to experiment trackers."""
