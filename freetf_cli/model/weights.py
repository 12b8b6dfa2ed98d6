"""Setting parameters, whole ones or shards."""

from __future__ import annotations

from torch import Tensor


def assign(parameter: Tensor, values: Tensor) -> None:
    """Set a parameter, or this process's shard of one that is a DTensor, to values of the whole parameter."""
    if (mesh := getattr(parameter, "device_mesh", None)) is None:
        parameter.copy_(values)
        return
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(parameter, DTensor)
    spread = distribute_tensor(values, mesh, parameter.placements, src_data_rank=None)  # each process has the values: nothing is sent
    parameter.to_local().copy_(spread.to_local())
