"""Training: objective, optimizer, schedules, and the loop."""
