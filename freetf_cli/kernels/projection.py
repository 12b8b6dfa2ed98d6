"""Several linear layers of one stream as one product.

A GPU takes as long to start a small product as to compute it, so compiled code multiplies once, by all weights side by side. Eager code
does not: it would copy the weights for each call.

Shapes: B sequences, T positions, D width, P outputs of all layers together.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def project(x_BTD: Tensor, *layers: nn.Linear) -> tuple[Tensor, ...]:
    """`layer(x)` of each layer, as one product where that is faster."""
    if not packs(*layers):
        return tuple(layer(x_BTD) for layer in layers)
    return torch.split(project_packed(x_BTD, *layers), [layer.out_features for layer in layers], dim=-1)


def project_packed(x_BTD: Tensor, *layers: nn.Linear) -> Tensor:
    """The layers' outputs side by side, [B, T, P]. The layers have no biases."""
    return F.linear(x_BTD, torch.cat([layer.weight for layer in layers]))


def packs(*layers: nn.Linear) -> bool:
    """Whether one product is faster: in compiled code, of layers without a product of their own."""
    return torch.compiler.is_compiling() and are_plain(*layers)


def are_plain(*layers: nn.Linear) -> bool:
    """Whether all are nn.Linear itself; `train.float8` replaces them by layers with a product of their own."""
    return all(type(layer) is nn.Linear for layer in layers)
