"""What a run leaves on disk: its folder, lock and checkpoints."""
