"""The Python API: load a run, sample with Z drawn or given, log-likelihoods, the posterior of Z.

    from freetf_cli import load, sample

    run = load("runs/letters-free")
    for one in sample(run, "K>", count=3, z="shared"):
        print(one.text)

Every random draw is a function of `seed`; nothing uses a global generator. Z of the binary latent is a code in [0, 2^H) for each position
that the model reads: [T]. Shapes: K draws, T positions, H bits.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from freetf_cli.config.recipe import Recipe
from freetf_cli.data.batches import IGNORE, Batch
from freetf_cli.data.tokenizer import Tokenizer
from freetf_cli.device import resolve_device
from freetf_cli.errors import InputError
from freetf_cli.evaluation.posterior import PosteriorPass, latent_of, posterior_draws, prior_draws, target_nats, tensors
from freetf_cli.generation.sampling import SampleSpec, generate
from freetf_cli.latent.binary import BinaryDistribution, bit_logits
from freetf_cli.model.decoder import Decoder
from freetf_cli.records import LN2
from freetf_cli.records.samples import Sample as Sample
from freetf_cli.runs.checkpoint import open_model
from freetf_cli.streams import keyed

Codes = Sequence[int] | NDArray[np.int64]


@dataclass(frozen=True)
class Run:
    """A checkpoint in memory. folder: the checkpoint's; step: of training. `model` is the torch module, in evaluation mode."""

    model: Decoder
    tokenizer: Tokenizer
    recipe: Recipe
    step: int
    folder: Path

    @property
    def bits(self) -> int:
        """H, the bits of Z per token; 0 of a baseline."""
        return self.recipe.latent.bits if self.recipe.latent else 0


@dataclass(frozen=True)
class LogLikelihood:
    """log P(text | prompt) in nats, and its standard error: 0 where it is exact, as of a baseline and of a given Z.

    Otherwise it is a Monte Carlo estimate, whose mean is a lower bound that rises with the draws. tokens: how many the text has.
    """

    nats: float
    standard_error: float
    tokens: int

    @property
    def bits(self) -> float:
        return self.nats / LN2


@dataclass(frozen=True)
class Posterior:
    """Q(Z | text), independent bits at every position that the model reads: the separator if there is one, the prompt, then the text.

    probabilities: P(bit = 1), [T, H], lowest bit first. kl: divergence from the prior in bits, [T].
    """

    probabilities: NDArray[np.float64]
    kl: NDArray[np.float64]

    def draw(self, count: int = 1, *, seed: int = 0) -> NDArray[np.int64]:
        """Codes [K, T] drawn from it."""
        noise = keyed(seed, "api posterior").random((count, *self.probabilities.shape))
        codes: NDArray[np.int64] = ((noise < self.probabilities) << np.arange(self.probabilities.shape[1])).sum(-1)
        return codes


def load(path: str | Path, *, device: Literal["auto", "cpu", "cuda", "mps"] = "auto") -> Run:
    """Load a run's newest checkpoint, or one checkpoint's folder. Its files are verified first; InputError names a damaged one."""
    checkpoint, model = open_model(Path(path), resolve_device(device), warnings.warn)
    return Run(model, checkpoint.tokenizer(), checkpoint.recipe, checkpoint.step, checkpoint.folder)


def sample(
    run: Run,
    prompt: str | Sequence[str],
    *,
    count: int = 1,
    groups: int = 1,
    z: Literal["independent", "shared"] | Iterable[Codes] = "independent",
    prompt_z: Literal["posterior", "prior"] | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    max_tokens: int | None = None,
    seed: int = 0,
) -> list[Sample]:
    """Continue prompts: `groups` × `count` sequences for each, the same as by `freetf sample` with these options.

    z: "independent" draws one Z per sequence, "shared" one per group; or a list of Zs, one for each sequence, or one for all. prompt_z:
    the prompt's Z is inferred ("posterior", the default unless Z is shared) or drawn as the rest. max_tokens: of the continuation;
    default: to the model's context. A sample has `text`, prompt and continuation, and its `z`.
    """
    drawn = z if isinstance(z, str) else "independent"
    if drawn not in ("independent", "shared"):
        raise InputError(f"z = {drawn!r}: it is 'independent', 'shared', or codes")
    given = None if isinstance(z, str) else [_checked(run, codes) for codes in z]
    row = (run.recipe.model.context or 1) + 1
    how = (given, prompt_z, temperature, top_k, top_p, seed)
    spec = SampleSpec(row, max_tokens, count, groups, drawn, *how)
    return list(generate(run.model, run.tokenizer, [prompt] if isinstance(prompt, str) else prompt, spec, warn=warnings.warn))


@torch.inference_mode()
def log_likelihood(
    run: Run,
    text: str,
    *,
    prompt: str = "",
    z: Literal["posterior", "prior"] | Codes = "posterior",
    draws: int = 64,
    seed: int = 0,
    end: bool = False,
) -> LogLikelihood:
    """log P(text | prompt). end: whether the text ends there, so that the separator after it counts.

    A baseline's is exact. Of a Free model it is the log of the mean over Z from the prior of P(text | prompt, Z), estimated by `draws` Zs:
    z = "posterior" draws them from Q(Z | prompt and text) and weights them, which needs few draws where Z tells much of the text; "prior"
    draws them from the prior. Codes are a given Z, with one code for each position that is read; log P(text | prompt, Z) is then exact.
    """
    batch = _batch(run, prompt, text, end=end)
    tokens, length = int((batch.targets != IGNORE).sum()), batch.inputs.shape[1]
    if run.model.latent is None:
        return LogLikelihood(-_nats(run, batch, None), 0.0, tokens)
    if not isinstance(z, str):
        codes = _checked(run, z)[:length]
        if len(codes) < length:
            raise InputError(f"z has {len(codes)} codes, and {length} positions are read")
        return LogLikelihood(-_nats(run, batch, torch.tensor([codes])), 0.0, tokens)
    passed = PosteriorPass(run.model, batch)
    if z == "prior":
        drawn = prior_draws(run.model, range(1), length, seed, draws)
        log_ratio: Tensor | float = 0.0
    elif z == "posterior":
        drawn = posterior_draws(run.model, passed.posterior, range(1), length, seed, draws)
        repeated = passed.posterior.rows(torch.zeros(draws, dtype=torch.long))
        log_ratio = ((latent_of(run.model).prior_log_prob(drawn) - repeated.log_prob(drawn)) * passed.latent_mask).double().sum(-1)
    else:
        raise InputError(f"z = {z!r}: it is 'posterior', 'prior', or codes")
    weights = (log_ratio - passed.nats(drawn).double().sum(-1)).cpu()
    nats = float(weights.logsumexp(0)) - math.log(draws)
    error = float((weights - nats).exp().std()) / math.sqrt(draws) if draws > 1 else math.nan
    return LogLikelihood(nats, error, tokens)


@torch.inference_mode()
def posterior(run: Run, text: str, *, prompt: str = "") -> Posterior:
    """What the encoder infers about Z from a whole text. InputError for a baseline."""
    if run.model.latent is None:
        raise InputError("a baseline has no Z, and no posterior")
    tokens, _ = tensors(run.model, _batch(run, prompt, text, end=True))
    ctx = run.model.context(tokens)
    found = run.model.infer_latent(run.model.lower(tokens, ctx), tokens, ctx)
    logits = bit_logits(found).double()
    return Posterior(torch.sigmoid(logits)[0].cpu().numpy(), (BinaryDistribution(logits).kl()[0] / LN2).cpu().numpy())


def prior(run: Run, length: int, *, count: int = 1, seed: int = 0) -> NDArray[np.int64]:
    """Codes [K, T] drawn from the prior, as many positions as `length`. InputError for a baseline."""
    if run.model.latent is None:
        raise InputError("a baseline has no Z, and no prior")
    return np.stack([run.model.latent.prior(keyed(seed, "api prior", number), length) for number in range(count)])


def _batch(run: Run, prompt: str, text: str, *, end: bool) -> Batch:
    """One row: what is read, and the text's tokens as targets. With end, the last token is read too."""
    separator = run.tokenizer.separator
    start = ([] if separator is None else [separator]) + run.tokenizer.encode(prompt, where="the prompt")
    tokens = start + run.tokenizer.encode(text, where="the text")
    if len(tokens) < 2 and not (end and tokens):
        raise InputError("there is no token to predict: the text is empty, or its first token, which nothing predicts without a prompt")
    last = [IGNORE if separator is None else separator]
    inputs, targets = (tokens, tokens[1:] + last) if end else (tokens[:-1], tokens[1:])
    targets[: max(0, len(start) - 1)] = [IGNORE] * max(0, len(start) - 1)
    return Batch(np.array([inputs], np.int64), np.array([targets], np.int64))


def _nats(run: Run, batch: Batch, z: Tensor | None) -> float:
    """−log P of the targets, nats."""
    tokens, targets = tensors(run.model, batch)
    ctx = run.model.context(tokens)
    hidden = run.model.upper(run.model.lower(tokens, ctx), None if z is None else z.to(tokens.device), ctx)
    return float(target_nats(run.model, hidden, targets).double().sum())


def _checked(run: Run, codes: Any) -> list[int]:
    """A given Z as a list. InputError unless it can be one of this model."""
    values = [int(code) if isinstance(code, np.integer) else code for code in codes]
    if run.model.latent is None:
        raise InputError("a baseline has no Z to give")
    try:
        run.model.latent.check_record(values)
    except ValueError as error:
        raise InputError(str(error)) from None
    return values
