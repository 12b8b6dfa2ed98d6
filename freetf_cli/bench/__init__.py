"""Speed and memory, as ratios within one run and as shares of what the machine can do."""
