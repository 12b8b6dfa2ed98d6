"""Runs as Hugging Face folders, and Hugging Face folders as runs."""
