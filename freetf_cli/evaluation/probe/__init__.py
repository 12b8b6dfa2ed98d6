"""What Z encodes."""
