"""The Python API: load a run, sample from it, estimate log-likelihoods, and infer the posterior of Z.

    from freetf_cli import load, sample

    run = load("runs/letters-free")
    for one in sample(run, "K>", count=3, z="shared"):
        print(one.text)

Every random draw is a function of `seed`; no global generator is used. With the binary latent, Z is one code in [0, 2^H) for each position
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

Codes = Sequence[int] | NDArray[np.int64] | Tensor


@dataclass(frozen=True)
class Run:
    """A loaded checkpoint. model: the torch module, in evaluation mode; step: the training step; folder: the checkpoint's."""

    model: Decoder
    tokenizer: Tokenizer
    recipe: Recipe
    step: int
    folder: Path

    @property
    def bits(self) -> int:
        """H, the bits of Z per token; 0 for a baseline."""
        return self.recipe.latent.bits if self.recipe.latent else 0


@dataclass(frozen=True)
class LogLikelihood:
    """log P(text | prompt) in nats, and its standard error, which is 0 for an exact value: for a baseline, or given Z.

    Otherwise it is a Monte Carlo estimate; its expectation is a lower bound that rises with the draws. tokens: the number of targets.
    """

    nats: float
    standard_error: float
    tokens: int

    @property
    def bits(self) -> float:
        return self.nats / LN2


@dataclass(frozen=True)
class Posterior:
    """Q(Z | text). The bits are independent. Positions are those that the model reads: any separator, the prompt, the text.

    probabilities: P(bit = 1), [T, H], lowest bit first. kl: KL divergence from the prior, in bits, [T].
    """

    probabilities: NDArray[np.float64]
    kl: NDArray[np.float64]

    def draw(self, count: int = 1, *, seed: int = 0) -> NDArray[np.int64]:
        """Draw `count` sequences of codes: [K, T]."""
        _check_whole(count=count)
        _check_whole(0, seed=seed)
        noise = keyed(seed, "api posterior").random((count, *self.probabilities.shape))
        codes: NDArray[np.int64] = ((noise < self.probabilities) << np.arange(self.probabilities.shape[1])).sum(-1)
        return codes


def load(path: str | Path, *, device: Literal["auto", "cpu", "cuda", "mps"] = "auto") -> Run:
    """Load a run's newest checkpoint, or the checkpoint in a given folder. Raises InputError if one of its files is damaged."""
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
    """Continue each prompt with `groups` × `count` sequences, the same as `freetf sample` gives with these options.

    z: "independent" draws one Z per sequence, "shared" one per group; a list gives a Z for each sequence, or one for all of them.
    prompt_z: the prompt's Z is inferred by the encoder ("posterior", the default unless Z is shared) or drawn from the prior. It cannot
    be combined with a list, which gives it.
    max_tokens: the most tokens of a continuation; by default it fills the model's context. A sample's `text` is the prompt and its
    continuation; `z` is its Z.
    """
    drawn = z if isinstance(z, str) else "independent"
    _check("z", z, drawn in ("independent", "shared"), "'independent', 'shared', or a list of codes for each sequence")
    _check("prompt_z", prompt_z, prompt_z in (None, "posterior", "prior"), "'posterior' or 'prior'")
    _check_whole(count=count, groups=groups, max_tokens=1 if max_tokens is None else max_tokens)
    _check_whole(0, top_k=top_k, seed=seed)
    _check("temperature", temperature, 0 <= temperature < math.inf, "a number ≥ 0")
    _check("top_p", top_p, 0 < top_p <= 1, "a number > 0 and ≤ 1")
    given = None if isinstance(z, str) else [_checked(run, codes) for codes in z]
    if given is not None and prompt_z is not None:
        raise InputError(
            f"prompt_z = {prompt_z!r} has no effect beside a list of Zs, which gives the prompt's", hint="give only one of them"
        )
    row = (run.recipe.model.context or 1) + 1
    spec = SampleSpec(
        total=row,
        new_tokens=max_tokens,
        count=count,
        groups=groups,
        z=drawn,
        given_z=given,
        prompt_z=prompt_z,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
    )
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
    """log P(text | prompt). end: count the separator after the text too.

    For a baseline it is exact. For a Free model it is log E_Z P(text | prompt, Z), with Z from the prior, estimated from `draws` Zs.
    z = "posterior": importance sampling from Q(Z | prompt and text), which needs fewer draws if Z carries much information about the
    text. z = "prior": Zs from the prior. Codes, one for each position that is read: the exact log P(text | prompt, Z).
    """
    _check("z", z, not isinstance(z, str) or z in ("posterior", "prior"), "'posterior', 'prior', or codes")
    _check_whole(draws=draws)
    _check_whole(0, seed=seed)
    batch = _batch(run, prompt, text, end=end)
    tokens, length = int((batch.targets != IGNORE).sum()), batch.inputs.shape[1]
    if not isinstance(z, str):
        codes = _checked(run, z)[:length]
        if len(codes) < length:
            raise InputError(f"z has {len(codes)} codes, and {length} positions are read")
        return LogLikelihood(-_nats(run, batch, torch.tensor([codes])), 0.0, tokens)
    if run.model.latent is None:
        return LogLikelihood(-_nats(run, batch, None), 0.0, tokens)
    passed = PosteriorPass(run.model, batch)
    if z == "prior":
        drawn = prior_draws(run.model, range(1), length, seed, draws)
        log_ratio: Tensor | float = 0.0
    else:
        drawn = posterior_draws(run.model, passed.posterior, range(1), length, seed, draws)
        repeated = passed.posterior.rows(torch.zeros(draws, dtype=torch.long))
        log_ratio = ((latent_of(run.model).prior_log_prob(drawn) - repeated.log_prob(drawn)) * passed.latent_mask).double().sum(-1)
    weights = (log_ratio - passed.nats(drawn).double().sum(-1)).cpu()
    nats = float(weights.logsumexp(0)) - math.log(draws)
    error = float((weights - nats).exp().std()) / math.sqrt(draws) if draws > 1 else math.nan
    return LogLikelihood(nats, error, tokens)


@torch.inference_mode()
def posterior(run: Run, text: str, *, prompt: str = "") -> Posterior:
    """The encoder's posterior of Z given a whole text. Raises InputError for a baseline."""
    if run.model.latent is None:
        raise InputError("a baseline has no Z, and no posterior")
    logits = bit_logits(PosteriorPass(run.model, _batch(run, prompt, text, end=True)).posterior).double()
    return Posterior(torch.sigmoid(logits)[0].cpu().numpy(), (BinaryDistribution(logits).kl()[0] / LN2).cpu().numpy())


def prior(run: Run, length: int, *, count: int = 1, seed: int = 0) -> NDArray[np.int64]:
    """Draw `count` sequences of codes for `length` positions from the prior: [K, T]. Raises InputError for a baseline."""
    if run.model.latent is None:
        raise InputError("a baseline has no Z, and no prior")
    _check_whole(length=length, count=count)
    _check_whole(0, seed=seed)
    return np.stack([run.model.latent.prior(keyed(seed, "api prior", number), length) for number in range(count)])


def _batch(run: Run, prompt: str, text: str, *, end: bool) -> Batch:
    """A batch of one row, whose targets are the text's tokens. end: the last token is an input too, and its target is the separator."""
    separator = run.tokenizer.separator
    start = ([] if separator is None else [separator]) + run.tokenizer.encode(prompt, where="the prompt")
    tokens = start + run.tokenizer.encode(text, where="the text")
    if len(tokens) < 2 and not (end and tokens):
        raise InputError("there is no token to predict: the text is empty, or it is a single token, which needs a prompt to predict it")
    last = [IGNORE if separator is None else separator]
    inputs, targets = (tokens, tokens[1:] + last) if end else (tokens[:-1], tokens[1:])
    if len(inputs) > (context := run.recipe.model.context or len(inputs)):
        warnings.warn(f"the model was trained on {context} positions, and {len(inputs)} are read: the rest may make no sense", stacklevel=3)
    targets[: max(0, len(start) - 1)] = [IGNORE] * max(0, len(start) - 1)
    return Batch(np.array([inputs], np.int64), np.array([targets], np.int64))


def _nats(run: Run, batch: Batch, z: Tensor | None) -> float:
    """−log P of the targets, in nats."""
    tokens, targets = tensors(run.model, batch)
    ctx = run.model.context(tokens)
    hidden = run.model.upper(run.model.lower(tokens, ctx), None if z is None else z.to(tokens.device), ctx)
    return float(target_nats(run.model, hidden, targets).double().sum())


def _checked(run: Run, codes: Any) -> list[int]:
    """A given Z as a list. Raises InputError if it is not valid for this model."""
    _check("codes of Z", codes, isinstance(codes, Iterable), "a list of whole numbers for each sequence")
    listed = codes.tolist() if isinstance(codes, np.ndarray | Tensor) else codes
    values = [int(code) if isinstance(code, np.integer) else code for code in listed]
    if run.model.latent is None:
        raise InputError("a baseline has no Z to give")
    try:
        run.model.latent.check_record(values)
    except ValueError as error:
        raise InputError(str(error)) from None
    return values


def _check_whole(least: int = 1, **arguments: object) -> None:
    """Raise InputError for an argument that is not a whole number ≥ least."""
    for name, value in arguments.items():
        _check(name, value, isinstance(value, int | np.integer) and bool(least <= value), f"a whole number ≥ {least}")


def _check(name: str, value: object, valid: bool, what: str) -> None:
    if not valid:
        raise InputError(f"{name} = {value!r}: it must be {what}")
