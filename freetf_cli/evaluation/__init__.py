"""What samples and runs tell: readings of generated rows, agreement between them, a run at a glance."""
