"""Operations with kernels of their own, each beside its plain PyTorch reference.

A file X.py has one operation: its equation, its reference, and the function that the model calls, which chooses between reference and
kernel. X_triton.py has the kernels, registered as custom operators. X imports it only where its kernels run, since not every system has
Triton; it imports nothing of X. Functions take tensors and know nothing of the model.
"""

from freetf_cli.kernels.attention import short_attention as short_attention
from freetf_cli.kernels.attention import takes_short_attention as takes_short_attention
from freetf_cli.kernels.convolution import convolve_weights as convolve_weights
from freetf_cli.kernels.cross_entropy import linear_cross_entropy as linear_cross_entropy
from freetf_cli.kernels.decoding import BlockWeights as BlockWeights
from freetf_cli.kernels.decoding import decode_block as decode_block
from freetf_cli.kernels.decoding import takes_decode_block as takes_decode_block
from freetf_cli.kernels.embedding import Embedding as Embedding
from freetf_cli.kernels.head_mix import mix_heads as mix_heads
from freetf_cli.kernels.mapper import logit_gradient as logit_gradient
from freetf_cli.kernels.projection import are_plain as are_plain
from freetf_cli.kernels.projection import packs as packs
from freetf_cli.kernels.projection import project as project
from freetf_cli.kernels.projection import project_packed as project_packed
from freetf_cli.kernels.rotary import Rotary as Rotary
from freetf_cli.kernels.rotary import rotary_tables as rotary_tables
from freetf_cli.kernels.rotary import rotate as rotate
from freetf_cli.kernels.rotary import rotate_and_split as rotate_and_split
from freetf_cli.kernels.support import runs_kernels as runs_kernels
