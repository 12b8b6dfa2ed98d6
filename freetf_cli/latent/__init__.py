"""The latent variable Z of a Free Transformer."""
