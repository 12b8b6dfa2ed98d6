"""The decoder and its parts: the equations of the model."""
