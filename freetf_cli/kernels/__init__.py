"""Operations with kernels of their own, each beside its plain PyTorch reference.

A file X.py has one operation: its equation, its reference, and the function that the model calls, which chooses between reference and
kernel. X_triton.py has the kernels, registered as custom operators; it is imported where they run, since not every system has Triton.
Functions take tensors and import nothing of the model.
"""

from freetf_cli.kernels.attention import short_attention, takes_short_attention
from freetf_cli.kernels.convolution import convolve_weights
from freetf_cli.kernels.cross_entropy import linear_cross_entropy
from freetf_cli.kernels.decoding import BlockWeights, decode_block, takes_decode_block
from freetf_cli.kernels.embedding import Embedding
from freetf_cli.kernels.head_mix import mix_heads
from freetf_cli.kernels.mapper import logit_gradient
from freetf_cli.kernels.projection import are_plain, packs, project, project_packed
from freetf_cli.kernels.rotary import Rotary, rotary_tables, rotate, rotate_and_split
from freetf_cli.kernels.support import runs_kernels

__all__ = [
    "BlockWeights",
    "Embedding",
    "Rotary",
    "are_plain",
    "convolve_weights",
    "decode_block",
    "linear_cross_entropy",
    "logit_gradient",
    "mix_heads",
    "packs",
    "project",
    "project_packed",
    "rotary_tables",
    "rotate",
    "rotate_and_split",
    "runs_kernels",
    "short_attention",
    "takes_decode_block",
    "takes_short_attention",
]
