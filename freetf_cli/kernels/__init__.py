"""Triton kernels and custom operators, each beside a plain reference."""
