"""The interface between the decoder and its latent Z. The kinds of latent are in the package `freetf_cli.latent`, one file each.

Z is a tensor whose first dimension is the sequence. The kind decides the rest: codes [B, T] (int64) for the paper's binary latent,
vectors [B, T, K] for a Gaussian one.

Shapes: B sequences, T positions, D width. Everything is in nats.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from freetf_cli.model.context import Context, Memory
from freetf_cli.model.weights import Draws


class ObjectiveWeights(NamedTuple):
    """Scalars of the objective at a training step, numbers or tensors [].

    kappa: free bits, nats per token. slope: weight of the KL below κ. mismatch: weight of the aggregate posterior's divergence
    from the prior. beta: weight of all these terms together.
    """

    kappa: Any
    slope: Any
    mismatch: Any
    beta: Any = 1.0


class Units(NamedTuple):
    """The parts that each Z consists of, all alike: its bits, or its numbers.

    name: "bit" or "dimension". kl: KL divergence of each from its prior, nats [B, T, U]. mean: the posterior's mean of each [B, T, U].
    """

    name: Literal["bit", "dimension"]
    kl: Tensor
    mean: Tensor


@dataclass(frozen=True)
class Distribution(ABC):
    """A distribution of Z for a batch of sequences. Where tokens share a Z, the first one has its KL; the others have the prior.

    A dataclass of tensors whose first dimension is the sequence, or None, so that `joined` can put batches together.
    """

    @abstractmethod
    def sample(self, noise: Tensor) -> Tensor:
        """Z from uniform noise in [0, 1) of shape [B, *Latent.noise_shape(T)]."""

    @abstractmethod
    def kl(self) -> Tensor:
        """KL divergence from the prior, nats per token [B, T]. A latent of a whole sequence puts its KL at the first position."""

    @abstractmethod
    def log_prob(self, z: Tensor) -> Tensor:
        """Log-probability of Z, nats per token [B, T]."""

    @abstractmethod
    def rows(self, index: Tensor) -> Distribution:
        """The distribution of the sequences with these indices, which may repeat."""

    @abstractmethod
    def within(self, mask_BT: Tensor) -> Distribution:
        """This distribution where the mask is 1, the prior where it is 0."""

    def log_prob_pairs(self, z: Tensor, at_once: int) -> Iterator[Tensor]:
        """Log-probability of each Z under each of the B distributions, nats per sequence: [A, B] float64, A = `at_once` Zs at a time.

        A kind may leave out terms that depend on Z alone.
        """
        for part in torch.split(z, at_once):
            yield torch.stack([self.log_prob(one[None]).double().sum(-1) for one in part])

    def units(self) -> Units | None:
        """The parts that a Z consists of; None for a kind whose Z has none."""
        return None


@dataclass(frozen=True)
class Injection:
    """What the decoder above reads of Z: nothing, unless a kind overrides one of these.

    memory_size: M, the number of keys that `memory` adds.
    """

    memory_size: ClassVar[int] = 0

    def stream(self, index: int, x_BTD: Tensor) -> Tensor:
        """The residual stream [B, T, D] that block `index` reads."""
        return x_BTD

    def kv(self, index: int, x_BTD: Tensor) -> Tensor | None:
        """The stream [B, T, D] that the keys and values of block `index` come from; None: the block's own stream."""
        return None

    def memory(self, index: int) -> Memory | None:
        """Further keys and values of block `index`."""
        return None

    def hidden(self, hidden_BTD: Tensor) -> Tensor:
        """What lm_head reads [B, T, D], from the normed stream after the last block."""
        return hidden_BTD


class Latent(nn.Module, ABC):
    """A kind of latent: its encoder, its prior, and how the decoder reads it.

    depth: number of blocks below the encoder and the injection. Nothing here draws random numbers; callers bring the noise.
    """

    depth: int
    kappa: float  # free bits per token of the configuration, bits
    window: int | None = None  # positions, from the first, whose Z is inferred; None: all
    every: int | Literal["sequence"] = 1  # tokens that share one Z, which the first of them infers
    row_bits: int = 0  # number of highest bits of a Z that the whole row shares, such as a plan's
    reach: int | None = None  # positions, from the first, whose Z the decoder reads; None: all
    reads_embeddings: bool = False  # whether `posterior` needs the embedded tokens
    no_weight_decay: tuple[str, ...] = ()  # names of matrices that AdamW must not decay

    @staticmethod
    def all_rows(own: Tensor) -> Tensor:
        """The rows of all processes, in the order of the batch; gradients flow to this process's own. Training on several replaces it."""
        return own

    @abstractmethod
    def posterior(self, x_BTD: Tensor, embedded_BTD: Tensor, ctx: Context) -> Distribution:
        """Q(Z | S) from the stream after `depth` blocks, or from the embedded tokens (Algorithm 2, lines 7 and 8).

        ctx: not causal, without a cache. embedded_BTD is the stream itself unless `reads_embeddings`.
        """

    def credited(self, posterior: Distribution, targets_BT: Tensor) -> tuple[Distribution, Tensor]:
        """In training: the posterior through which the cross-entropy reaches the encoder, and the targets that count."""
        return posterior, targets_BT

    def limited_kl(self, posterior: Distribution, kl_BT: Tensor) -> Tensor:
        """The part of the KL that κ limits, nats per token [B, T]; bits of the row have a limit of their own. kl_BT: all of it, masked."""
        return kl_BT

    @abstractmethod
    def inject(self, z: Tensor, posterior: Distribution | None = None) -> Injection:
        """What the upper blocks read. With the posterior that Z was sampled from, gradients flow to the encoder too."""

    @abstractmethod
    def prior(self, stream: np.random.Generator, length: int) -> np.ndarray:
        """Z of one sequence of `length` positions, drawn from the prior."""

    @abstractmethod
    def prior_log_prob(self, z: Tensor) -> Tensor:
        """Log-probability of Z under the prior, nats per token [B, T]."""

    @abstractmethod
    def check_record(self, values: list[Any]) -> None:
        """Raise ValueError unless `values`, a list read from JSON, can be the Z of one sequence."""

    @abstractmethod
    def noise_shape(self, length: int) -> tuple[int, ...]:
        """Shape of the uniform noise that `Distribution.sample` needs for one sequence of `length` positions."""

    @abstractmethod
    def penalty(self, posterior: Distribution, kl_BT: Tensor, latent_mask_BT: Tensor, weights: ObjectiveWeights) -> Tensor:
        """What the objective adds to the cross-entropy, summed over the batch, nats []. kl_BT: `posterior.kl()`, masked."""

    @abstractmethod
    def initialise(self, draws: Draws) -> None:
        """Set all parameters, by `draws.normal` or `fill`: both set only the rows that this process holds."""

    @abstractmethod
    def parts(self) -> dict[str, nn.Module]:
        """The latent's modules by the name that `--dry-run` shows, in the order of Algorithm 2."""

    def numbers(self, z: Tensor) -> Tensor:
        """Z as numbers [B, T, U], for probes that read it."""
        return (z if z.dim() > 2 else z[..., None]).float()

    @property
    def is_shared(self) -> bool:
        """Whether tokens share a Z, or a part of it."""
        return self.every != 1

    @property
    def own(self) -> slice:
        """The positions of a row, without padding, that have a Z of their own: all, or the first of those that share one."""
        return slice(0, 1) if self.every == "sequence" else slice(None, None, self.every)

    def starts(self, ctx: Context) -> Tensor | None:
        """The place in the row of the token that infers each position's Z: [T], or [B, T] with padding. None: every token has its own Z."""
        if self.every == 1:
            return None
        own = ctx.token_positions
        return ctx.positions_T - (own if self.every == "sequence" else own % self.every)

    def agreed(self, z: np.ndarray) -> np.ndarray:
        """Z [T, …] of one sequence, where tokens that share a Z, or a part of it, have that of the first of them."""
        return shared(z, self.every)

    def sharing(self, position: int, bit: int, length: int) -> np.ndarray:
        """The positions of a sequence that have the same bit of Z as this one, for a latent of bits."""
        begins = shared(np.arange(length), self.every)
        return np.flatnonzero(begins == begins[position])

    def check_shared(self, values: list[Any]) -> None:
        """Raise ValueError unless the Zs of tokens that share one are the same."""
        for t, first in enumerate(shared(np.arange(len(values)), self.every).tolist()):
            if values[t] != values[first]:
                raise ValueError(f"positions {first} and {t} share a Z (latent.every = {self.every}), and the record has two")

    def span(self, z: Tensor, start: int | Tensor, count: int) -> Tensor:
        """Z at positions start … start + count − 1. A latent of a whole sequence returns Z itself."""
        if isinstance(start, Tensor):
            return z.index_select(1, start + torch.arange(count, device=z.device))
        return z[:, start : start + count]

    def batch(self, zs: Sequence[np.ndarray], offsets: Sequence[int], length: int) -> Tensor:
        """Z of several sequences as one tensor [B, length, …], each from its offset on. Of whole sequences: stacked."""
        whole = np.zeros((len(zs), length, *zs[0].shape[1:]), zs[0].dtype)
        for row, z, offset in zip(whole, zs, offsets, strict=True):
            row[offset : offset + len(z)] = z
        return torch.from_numpy(whole)

    def with_prefix(self, z: Tensor, prefix: Tensor, padding_B: Tensor | None = None) -> Tensor:
        """Z whose first positions are those of `prefix`, in place where Z is a latent per token. padding_B: left padding of each sequence.

        Where tokens share a Z, the last one of the prefix holds for those after it that share it.
        """
        known = prefix.shape[1]
        z[:, :known] = prefix
        if self.every != 1 and known:
            later_T = torch.arange(known, z.shape[1], device=z.device)
            own_BT = later_T.expand(len(z), -1) if padding_B is None else later_T - padding_B[:, None]
            begun_BT = own_BT - (own_BT if self.every == "sequence" else own_BT % self.every)
            first_B1 = known if padding_B is None else known - padding_B[:, None]
            same_BT = (begun_BT < first_B1).view(*begun_BT.shape, *[1] * (z.dim() - 2))
            z[:, known:] = torch.where(same_BT, prefix[:, -1:], z[:, known:])
        return z


def joined(parts: Sequence[Distribution]) -> Distribution:
    """The distributions of several batches as one, on the CPU."""
    first = parts[0]
    columns = {field.name: [getattr(part, field.name) for part in parts] for field in fields(first)}
    return type(first)(
        **{name: None if column[0] is None else torch.cat([one.cpu() for one in column]) for name, column in columns.items()}
    )


def shared(z: np.ndarray, every: int | Literal["sequence"]) -> np.ndarray:
    """The Zs [T, …] of one sequence, where `every` tokens each have the Z of the first of them."""
    places = np.arange(len(z))
    kept: np.ndarray = z[np.zeros_like(places) if every == "sequence" else places - places % every]
    return kept


def gather(z: Tensor, starts: Tensor | None) -> Tensor:
    """The same for a batch [B, T, …]. starts: of `Latent.starts`."""
    if starts is None:
        return z
    index_BT = starts.expand(z.shape[:2])
    return z.gather(1, index_BT if z.dim() == 2 else index_BT[..., None].expand_as(z))
