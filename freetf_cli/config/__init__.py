"""Typed recipes: their tables, files and schema."""
