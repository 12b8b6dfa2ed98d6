"""Several linear layers of one stream as one matrix product.

A GPU takes as long to start a small product as to compute it. Compiled code therefore multiplies once, by all weights side by side.
Eager code does not, since it would copy the weights at each call. Nor does `project` if they are large: the backward would keep their copy.

Shapes: B sequences, T positions, D width, P outputs of all layers together.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PACKED = 1 << 25  # weights that `project` puts side by side at most


def project(x_BTD: Tensor, *layers: nn.Linear) -> tuple[Tensor, ...]:
    """`layer(x)` of each layer, as one product where that is faster."""
    if not packs(*layers) or sum(layer.weight.numel() for layer in layers) > PACKED:
        return tuple(layer(x_BTD) for layer in layers)
    return torch.split(project_packed(x_BTD, *layers), [layer.out_features for layer in layers], dim=-1)


def project_packed(x_BTD: Tensor, *layers: nn.Linear) -> Tensor:
    """The outputs of layers without biases side by side, [B, T, P]."""
    return F.linear(x_BTD, torch.cat([layer.weight for layer in layers]))


def packs(*layers: nn.Linear) -> bool:
    """Whether one product is faster: in compiled code, if all layers are plain."""
    return torch.compiler.is_compiling() and are_plain(*layers)


def are_plain(*layers: nn.Linear) -> bool:
    """Whether all are nn.Linear itself; `train.float8` replaces it by a layer with its own product."""
    return all(type(layer) is nn.Linear for layer in layers)
