"""Runs as folders of Hugging Face, folders of Hugging Face as runs, and metrics in the forms of trackers."""
