"""Engines: how the processes of a run share a model, by DistributedDataParallel or FSDP2.

    mode    engine                                            each process holds
    none    –                                                 everything
    ddp     DistributedDataParallel                           everything
    fsdp    fully_shard, FSDP2                                1/N of the weights, gradients and moments
    hsdp    fully_shard on a mesh of replicas × shards        1/shards of them

The order is torchtitan's: activation checkpointing, compilation, then sharding. Gradients are sums over the whole batch, whose
loss was divided by its targets before the backward, so no engine divides them again. The optimizer updates plain tensors: the
parameters themselves, or this process's shards of them. It then needs no DTensor operation, whose cost per parameter exceeds that of the
update, and torch < 2.13 has nothing to leak there (pytorch issue 188174).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from freetf_cli.config.recipe import Recipe, TrainConfig
from freetf_cli.device import autocast_dtype
from freetf_cli.errors import InputError
from freetf_cli.latent.build import build_model
from freetf_cli.model.block import Block
from freetf_cli.model.decoder import Decoder, Output
from freetf_cli.model.latent import Latent
from freetf_cli.runs.plan import count
from freetf_cli.runs.spread import gathered_units
from freetf_cli.training.float8 import without_float8
from freetf_cli.training.world import World

WARM_UP = 3  # updates before a CUDA graph is captured: in the first of them libraries initialise and torch.compile compiles
WARM_UP_DDP = 11  # DDP builds its buckets anew in the first ones
SMALL = 32_000_000  # parameters: up to here, overlapping the exchange of gradients gains less than compiling the whole model does


class Engine:
    """A model in one process, and the base of the engines for several.

    forward: what a training step calls. parameters: what this process updates, by name; its shards of the model's parameters where they
    are sharded. After `collect`, their gradients are those of the whole batch.
    """

    is_alone = True
    warm_up = WARM_UP
    captures = True  # whether forward and backward can be captured as a CUDA graph
    offloads = False  # whether the parameters are in the host's memory, not on the device of the forward

    def __init__(self, model: Decoder, config: TrainConfig, device: torch.device) -> None:
        self.model, self.device = model, device
        self.parameters: dict[str, nn.Parameter] = dict(model.named_parameters())
        self.forward: Callable[..., Output] = compiled(model, config, device)

    def groups(self) -> list[Any]:
        """The process groups that a step communicates in."""
        return []

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self.model.zero_grad(set_to_none=True)

    def last_part(self, is_last: bool) -> None:
        """Called before each backward pass: processes exchange gradients only in the last one of a batch."""

    def collect(self, sums: Tensor) -> None:
        """After the last backward pass of a batch: complete the gradients, and sum `sums` over the processes."""

    def norm(self) -> Tensor:
        """The norm of the gradient of the whole batch, []."""
        return nn.utils.get_total_norm([p.grad for p in self.parameters.values() if p.grad is not None])

    def states(self, moments: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        """The weights and the optimizer's moments to save or to load, by name; DTensors where they are sharded."""
        return self.parameters, moments

    @contextmanager
    def whole(self) -> Iterator[Decoder]:
        """The model in evaluation mode with all of its weights, for work that each process does at its own pace."""
        self.model.eval()
        with own_rows(self.model.latent), without_float8(self.model):
            yield self.model
        self.model.train()


class Replicated(Engine):
    """A copy of the model in each process. DistributedDataParallel sums gradients in buckets during the backward pass.

    A small model is compiled as a whole; then all its gradients are ready at once, at the end of the backward pass.
    """

    is_alone = False
    warm_up = WARM_UP_DDP

    def __init__(self, model: Decoder, config: TrainConfig, device: torch.device, world: World) -> None:
        super().__init__(model, config, device)
        if count(model) > SMALL:
            compile_units(model, config, device)
        elif compiles(config, device):
            torch._dynamo.config.optimize_ddp = False  # it would cut the model where a bucket ends
            model.compile(dynamic=False)
        if model.latent is not None:
            model.latent.all_rows = partial(all_rows, world=world)  # type: ignore[method-assign]
        with side_stream(device):  # as capturing needs
            self.ddp = nn.parallel.DistributedDataParallel(model, init_sync=False, gradient_as_bucket_view=True)
        self.ddp.register_comm_hook(None, _sum_bucket)
        self.forward = self.ddp

    def groups(self) -> list[Any]:
        return [dist.group.WORLD]

    def last_part(self, is_last: bool) -> None:
        self.ddp.require_backward_grad_sync = is_last

    def collect(self, sums: Tensor) -> None:
        dist.all_reduce(sums)


class Sharded(Engine):
    """A shard of the model in each process (FSDP2). The whole weights of a block exist only while it computes.

    FSDP2 gathers one unit at a time. Units are the blocks, several together if they are small, the latent's modules, among them the table
    [2^H, D], and the root unit: embedding, norm and lm_head. In bfloat16 training all units but the root are gathered in bfloat16;
    embedding and residual stream stay in float32, as on one GPU. Gradients are reduced in float32.
    """

    is_alone = False

    def __init__(self, model: Decoder, recipe: Recipe, device: torch.device, world: World) -> None:
        """model: on the meta device. Its parameters are on the device afterwards, and not set yet."""
        from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
        from torch.distributed.tensor import DTensor

        warnings.filterwarnings("ignore", ".*returned a view tensor.*", UserWarning)  # of the table; nothing writes into it
        warnings.filterwarnings("ignore", "Mismatch dtype between input and weight", UserWarning)  # norms: bfloat16 weights
        self.model, self.recipe, self.device = model, recipe, device
        config = recipe.parallel
        self.offloads = config.cpu_offload
        self.captures = not (self.offloads or config.reshard_after_forward)
        compile_units(model, recipe.train, device)
        self.mesh = device_mesh(device, world, config.shards(world.size))
        gathered = autocast_dtype(recipe.train.precision, device)
        offload = CPUOffloadPolicy() if self.offloads else OffloadPolicy()
        of_units, of_root = (
            MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False) for dtype in (gathered, None)
        )
        gathers = gathered_units(model)
        of_unit = {id(parameter) for unit in gathers for module in unit for parameter in module.parameters()}
        self._dtypes = {name: gathered for name, parameter in model.named_parameters() if gathered and id(parameter) in of_unit}
        resharding = config.reshard_after_forward
        for unit in gathers:
            fully_shard(unit, mesh=self.mesh, reshard_after_forward=resharding, mp_policy=of_units, offload_policy=offload)
        fully_shard(model, mesh=self.mesh, mp_policy=of_root, offload_policy=offload)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)  # gloo cannot multiply while it sums
        model.to_empty(device="cpu" if self.offloads else device)
        self.forward = model
        if model.latent is not None:
            model.latent.all_rows = partial(all_rows, world=world)  # type: ignore[method-assign]
        self.sharded: dict[str, DTensor] = dict(model.named_parameters())  # type: ignore[arg-type]
        locals_ = ((name, parameter.detach()) for name, parameter in self.sharded.items())
        self.parameters = {name: nn.Parameter(shard.to_local()) for name, shard in locals_ if isinstance(shard, DTensor)}
        self._shards = self.mesh.get_group("dp_shard")

    def groups(self) -> list[Any]:
        return [dist.group.WORLD, *self.mesh.get_all_groups()]

    def last_part(self, is_last: bool) -> None:
        self.model.set_requires_gradient_sync(is_last)  # type: ignore[operator]

    def collect(self, sums: Tensor) -> None:
        for name, parameter in self.sharded.items():
            self.parameters[name].grad = None if parameter.grad is None else parameter.grad.to_local()  # type: ignore[attr-defined]
        dist.all_reduce(sums)

    def zero_grad(self) -> None:
        super().zero_grad()
        for shard in self.parameters.values():
            shard.grad = None

    def norm(self) -> Tensor:
        squared = super().norm().to(self.device).square()
        dist.all_reduce(squared, group=self._shards)
        return squared.sqrt()

    @contextmanager
    def whole(self) -> Iterator[Decoder]:
        """A model that is not sharded, with all weights in the dtypes of the forward pass."""
        with torch.device("meta"):
            model = build_model(self.recipe.model, self.recipe.latent)
        weights = {name: self.gathered(name, self._dtypes.get(name, torch.float32)) for name in self.sharded}
        model.load_state_dict(weights, assign=True)
        yield model.eval()

    def gathered(self, name: str, dtype: torch.dtype) -> Tensor:
        """A whole parameter, on the device of the forward."""
        local = self.parameters[name].detach().to(self.device, dtype)
        whole: Tensor = self.like(name, local).full_tensor()
        return whole

    def states(self, moments: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        spread = {name: self.like(name.rpartition(".")[0], moment) if moment.dim() else moment for name, moment in moments.items()}
        return self.sharded, spread

    def like(self, name: str, local: Tensor) -> Any:
        """This process's part of a tensor that is sharded as a parameter is, as a DTensor."""
        from torch.distributed.tensor import DTensor

        whole = self.sharded[name]
        if local.device.type != whole.device_mesh.device_type:  # `from_local` would move it to the mesh's device
            return DTensor(local, whole._spec, requires_grad=False)  # type: ignore[no-untyped-call]
        return DTensor.from_local(local, whole.device_mesh, whole.placements, shape=whole.shape, stride=whole.stride())


def all_rows(own: Tensor, world: World) -> Tensor:
    """The rows of all processes, in the order of the batch (`World.rows`). Gradients flow to this process's own."""
    parts = [torch.empty_like(own) for _ in range(world.size)]
    dist.all_gather(parts, own.detach().contiguous())
    parts[world.rank] = own
    return torch.cat(parts)


def check_engine(recipe: Recipe, device: torch.device) -> None:
    """Raise InputError if a setting of the engine does nothing, or cannot work, on a device."""
    if recipe.parallel.cpu_offload and device.type != "cuda":
        what = f"parallel.cpu_offload on {device.type}: it only moves weights from a GPU to the host's memory"
        raise InputError(what, hint="leave it out")
    if recipe.train.activation_checkpointing == "budget" and not compiles(recipe.train, device):
        what = "train.activation_checkpointing = 'budget' without torch.compile, which decides what to keep"
        raise InputError(what, hint="set train.compile = 'on', or use 'full' or 'selective'")


def side_stream(device: torch.device) -> AbstractContextManager[Any]:
    """A CUDA stream of its own; nothing on a CPU."""
    return torch.cuda.stream(torch.cuda.Stream(device)) if device.type == "cuda" else nullcontext()  # type: ignore[no-untyped-call]


@contextmanager
def own_rows(latent: Latent | None) -> Iterator[None]:
    """Inside the block, loss terms that compare sequences use only those of this process."""
    gather = None if latent is None else latent.__dict__.pop("all_rows", None)
    yield
    if latent is not None and gather is not None:
        latent.all_rows = gather  # type: ignore[method-assign]


def device_mesh(device: torch.device, world: World, shards: int) -> Any:
    """The processes as replicas × shards; with one replica, the shards alone."""
    from torch.distributed.device_mesh import init_device_mesh

    if shards == world.size:
        return init_device_mesh(device.type, (shards,), mesh_dim_names=("dp_shard",))
    return init_device_mesh(device.type, (world.size // shards, shards), mesh_dim_names=("dp_replicate", "dp_shard"))


def checkpoint_activations(model: Decoder, config: TrainConfig) -> None:
    """Recompute activations of the blocks in the backward pass, as `train.activation_checkpointing` says.

    full: a block keeps its input only. selective: it keeps what attention and every second matrix product return as well. budget:
    torch.compile decides what to keep within half of the memory.
    """
    if config.activation_checkpointing == "budget":
        import torch._functorch.config

        torch._functorch.config.activation_memory_budget = 0.5
        return
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    if config.activation_checkpointing == "selective":
        options["context_fn"] = _selective
        # Where a block is compiled, torch warns that it must not have in-place operations. It has none.
        logging.getLogger("torch._higher_order_ops.wrap").setLevel(logging.ERROR)
    for block in model.modules() if config.activation_checkpointing != "none" else ():
        if isinstance(block, Block):
            block.forward = _recomputed(block.forward, options)  # type: ignore[method-assign]


def _recomputed(forward: Callable[..., Any], options: Mapping[str, Any]) -> Callable[..., Any]:
    """`forward` as a function that keeps only its inputs. torch.compile can compile it, but not a `partial` of `checkpoint`."""
    from torch.utils.checkpoint import checkpoint

    def run(*arguments: Any, **named: Any) -> Any:
        return checkpoint(forward, *arguments, **options, **named)

    return run


def _selective() -> Any:
    """Contexts for a block's forward pass and its recomputation: outputs of attention and of every second product are kept."""
    from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

    products = {False: 0, True: 0}  # of the forward, and of its repetition

    def policy(context: Any, operation: Any, *arguments: Any, **options: Any) -> CheckpointPolicy:
        name, keeps = str(operation), "attention" in str(operation)
        if name.startswith(("aten.mm.", "aten.addmm.")):
            products[context.is_recompute] += 1
            keeps = products[context.is_recompute] % 2 == 1
        return CheckpointPolicy.MUST_SAVE if keeps else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)  # type: ignore[no-untyped-call]


def compile_units(model: Decoder, config: TrainConfig, device: torch.device) -> None:
    """Compile each block, and the encoder, by itself, so that an engine's hooks run between them; equal blocks are compiled once."""
    parts = () if model.latent is None else model.latent.children()
    for module in (*model.blocks, *parts) if compiles(config, device) else ():
        if any(isinstance(each, Block) for each in module.modules()):
            module.compile(dynamic=False)


def compiles(config: TrainConfig, device: torch.device) -> bool:
    """Whether `train.compile` asks for compilation on a device."""
    return config.compile == "on" or (config.compile == "auto" and device.type == "cuda")


def compiled(function: Callable[..., Any], config: TrainConfig, device: torch.device) -> Callable[..., Any]:
    """A model or function, compiled if `train.compile` asks for it."""
    # The compiler advises TF32 for products in float32. What is left in float32 is meant to keep all its digits.
    warnings.filterwarnings("ignore", "TensorFloat32 tensor cores", UserWarning)
    return torch.compile(function, dynamic=False) if compiles(config, device) else function


def _sum_bucket(state, bucket):  # type: ignore[no-untyped-def]  # DDP refuses an annotation that is a string
    """DDP's exchange of a bucket of gradients: their sum, where its default is the mean."""
    work: Any = dist.all_reduce(bucket.buffer(), async_op=True)
    return work.get_future().then(lambda future: future.value()[0])
