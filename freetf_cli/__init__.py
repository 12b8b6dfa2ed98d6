"""freetf: a command-line toolkit for the Free Transformer (Fleuret, arXiv 2510.17558)."""

__version__ = "0.2.0.dev0"
