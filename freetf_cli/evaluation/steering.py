"""Codes of Z for a label: which bits tell it, learned from labelled documents, and Zs that have them (docs/probing.md, Codes for a label).

For each bit of each position, the probability that it is set is averaged over the posteriors of the documents with a value of the label,
and over those with the other values, each value counting alike. The log-odds between the two averages, w, are kept where the difference
is not chance (Welch's t, Benjamini and Hochberg's procedure at 10 %), else set to 0. A Z for the value has independent bits with

    P(bit = 1) = σ(strength · w / 2)

With two values that together use a bit as the prior does, strength 1 gives the bit's own frequency among the value's documents; more
makes it surer. Bits that tell nothing are drawn from the prior, so the codes of one value differ in all else that Z decides.

Shapes: N documents, B at a time, T positions, H bits, K values of the label.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from freetf_cli.data.batches import DataSource
from freetf_cli.data.rows import Factors
from freetf_cli.durable import write_durably
from freetf_cli.errors import InputError, nearest
from freetf_cli.evaluation import Stage
from freetf_cli.evaluation.posterior import PosteriorPass, latent_of, rows_at_once
from freetf_cli.evaluation.probe.factors import factor_reader
from freetf_cli.evaluation.probe.intervention import Generator
from freetf_cli.evaluation.probe.measure import LONGEST
from freetf_cli.evaluation.statistics import LEAST, Floats, share
from freetf_cli.generation.sampling import SampleSpec
from freetf_cli.latent.binary import BinaryLatent, bit_logits
from freetf_cli.model.decoder import Decoder
from freetf_cli.records.steering import FoundCodes, LabelCodes
from freetf_cli.runs.checkpoint import Checkpoint
from freetf_cli.streams import keyed

FALSE = 0.1  # share of false discoveries among the bits that tell a value
MOST_VALUES = 64

Codes = NDArray[np.int64]


@dataclass(frozen=True)
class CodesSpec:
    """What to look for. split: the documents to learn from; held_out: those that test the reader; count: Zs for each value.

    tokens: of each text that is generated, prompt included, within the model's context.
    """

    label: str | None = None
    split: str = "train"
    held_out: str = "val"
    sequences: int = 2048
    count: int = 128
    strength: float = 4.0
    prompt: str | None = None
    tokens: int = LONGEST
    seed: int = 0


@dataclass(frozen=True, eq=False)
class BitSums:
    """Over the documents of each value: how many have each position [K, T], and the sums of P(bit = 1) and of its square [K, T, H]."""

    documents: NDArray[np.int64]  # [K]
    count: Floats
    total: Floats
    square: Floats


def find_codes(
    checkpoint: Checkpoint, model: Decoder, source: DataSource, spec: CodesSpec, out: Path, *, run: str, stage: Stage
) -> FoundCodes:
    """Learn the codes of each value of a label, write OUT/VALUE.jsonl with `count` Zs, and measure what share of texts they steer.

    InputError for a baseline, a latent without bits, and documents without labels.
    """
    if model.latent is None:
        raise InputError("this run is a baseline, it has no Z", run)
    if not isinstance(model.latent, BinaryLatent):
        hint = "`freetf sample RUN --z-from TEXT` takes Z from a text that has the label"
        raise InputError("find-codes looks for bits of Z, and this run's latent has none", run, hint)
    name, values, numbers_N = label_values(source.held_out_factors(spec.split, spec.sequences), spec.label)
    with stage("reading documents", len(numbers_N)) as advance:
        sums = bit_sums(model, source, spec, numbers_N, len(values), advance)
    odds_KTH = log_odds(sums)
    agreed = model.latent.agreed
    drawn = (draw_codes(odds, spec.strength, spec.count, spec.seed) for odds in odds_KTH)
    zs = {value: np.stack([agreed(z) for z in codes]) for value, codes in zip(values, drawn, strict=True)}
    files = {value: out / f"{re.sub(r'[^0-9A-Za-z_.+-]', '_', value)}.jsonl" for value in values}
    out.mkdir(parents=True, exist_ok=True)
    for value, file in files.items():
        write_durably(file, "".join(json.dumps({"z": z, name: value}) + "\n" for z in zs[value].tolist()))
    shares, notes = _shares(model, source, spec, name, zs, stage)
    found = [
        LabelCodes(
            value=value,
            documents=int(sums.documents[k]),
            bits=int((odds_KTH[k] != 0).sum()),
            positions=int((odds_KTH[k] != 0).any(-1).sum()),
            strongest=float(np.abs(odds_KTH[k]).max()),
            share=shares.get(value, (None, None))[0],
            prior=shares.get(value, (None, None))[1],
            file=str(files[value]),
        )
        for k, value in enumerate(values)
    ]
    own_TH = odds_KTH[0, model.latent.own]
    bits = own_TH.size - (len(own_TH) - 1) * model.latent.row_bits
    return FoundCodes(run, checkpoint.step, name, spec.split, bits, spec.strength, spec.count, spec.seed, found, notes)


def label_values(rows: Sequence[Factors], name: str | None) -> tuple[str, list[str], NDArray[np.int64]]:
    """The label's name, its values, and the number of each row's value [N], −1 for none. Values of fewer than 20 rows are left out."""
    names = sorted({key for row in rows for key, value in row.items() if isinstance(value, str | int)})
    if not names:
        hint = "`freetf prepare` takes labels from the names of folders, or from a field of JSON records with --label-field"
        raise InputError("the documents have no labels", hint=hint)
    if name is None and len(names) > 1:
        raise InputError("which label?", hint=f"give --label: {', '.join(names)}")
    chosen = names[0] if name is None else name
    if chosen not in names:
        raise InputError(f"the documents have no label '{chosen}'", hint=nearest(chosen, names))
    found = [str(row[chosen]) if chosen in row else None for row in rows]
    counts = {value: found.count(value) for value in {one for one in found if one is not None}}
    values = sorted((value for value, count in counts.items() if count >= LEAST), key=lambda value: (len(value), value))
    if not 2 <= len(values) <= MOST_VALUES:
        what = f"label '{chosen}' has {len(values)} values with at least {LEAST} documents, not 2 to {MOST_VALUES}"
        raise InputError(what, hint="raise --sequences, or choose another --label")
    number = {value: k for k, value in enumerate(values)}
    return chosen, values, np.array([-1 if one is None else number.get(one, -1) for one in found], np.int64)


@torch.inference_mode()
def bit_sums(model: Decoder, source: DataSource, spec: CodesSpec, numbers_N: NDArray[np.int64], values: int, advance: Any) -> BitSums:
    """The posteriors of the documents, summed by the value of their label."""
    documents, parts = np.bincount(numbers_N[numbers_N >= 0], minlength=values), dict[str, Floats]()
    start = 0
    for batch in source.held_out(spec.split, spec.sequences, rows_at_once(model, source.context)):
        passed, own_B = PosteriorPass(model, batch), numbers_N[start : start + len(batch.inputs)]
        mask_BT1 = passed.latent_mask.double().cpu().numpy()[..., None]
        p_BTH = torch.sigmoid(bit_logits(passed.posterior).double()).cpu().numpy() * mask_BT1
        for name, terms in (("count", mask_BT1[..., 0]), ("total", p_BTH), ("square", p_BTH**2)):
            sums = parts.setdefault(name, np.zeros((values, *terms.shape[1:])))
            np.add.at(sums, own_B[own_B >= 0], terms[own_B >= 0])
        start += len(batch.inputs)
        advance(len(batch.inputs))
    return BitSums(documents, **parts)


def log_odds(sums: BitSums) -> Floats:
    """w of each bit for each value [K, T, H], 0 where it is chance."""
    n_KT1 = sums.count[..., None]
    plain, mean = sums.total / np.maximum(n_KT1, 1), (sums.total + 0.5) / (n_KT1 + 1)  # the second for odds, which are finite then
    variance = np.maximum(sums.square / np.maximum(n_KT1, 1) - plain**2, 0) / np.maximum(n_KT1 - 1, 1)
    others = len(mean) - 1
    rest = (mean.sum(0) - mean) / others
    error = np.sqrt(np.maximum(variance + (variance.sum(0) - variance) / others**2, 1e-12))
    t = (plain - (plain.sum(0) - plain) / others) / error
    enough = n_KT1.min(0) >= LEAST
    p_KTH = torch.special.erfc(torch.from_numpy(np.abs(t) / np.sqrt(2))).numpy()
    found: Floats = np.log(mean / (1 - mean)) - np.log(rest / (1 - rest))
    for odds, p_TH in zip(found, p_KTH, strict=True):
        odds[~(_discoveries(np.where(enough, p_TH, 1.0)))] = 0
    return found


def _discoveries(p: Floats) -> NDArray[np.bool_]:
    """Which p-values Benjamini and Hochberg's procedure keeps at a false discovery rate of FALSE."""
    ordered = np.sort(p.ravel())
    below = np.flatnonzero(ordered <= FALSE * np.arange(1, p.size + 1) / p.size)
    kept: NDArray[np.bool_] = p <= (ordered[below[-1]] if len(below) else -1.0)
    return kept


def draw_codes(odds_TH: Floats, strength: float, count: int, seed: int) -> Codes:
    """Codes [count, T]. Bits that have log-odds are drawn with them, all others from the prior."""
    p_TH = 1 / (1 + np.exp(-np.clip(strength * odds_TH / 2, -500, 500)))
    weights_H = 2 ** np.arange(odds_TH.shape[-1])
    drawn = [(keyed(seed, "codes", number).random(odds_TH.shape) < p_TH) @ weights_H for number in range(count)]
    return np.stack(drawn).astype(np.int64)


def _shares(
    model: Decoder, source: DataSource, spec: CodesSpec, name: str, zs: dict[str, Codes], stage: Stage
) -> tuple[dict[str, Any], list[str]]:
    """For each value the share of texts that have it, with its codes and with Z from the prior; and how texts are read."""
    length = min(source.context + 1, spec.tokens)
    reader = factor_reader(source, spec.held_out, spec.sequences, length)
    factor = next((one for one in reader.factors if one.name == name and one.sites == 1), None) if reader else None
    if reader is None or factor is None:
        return {}, [f"{name} cannot be read from generated texts, so no share was measured"]
    generator, latent = Generator(model, source.tokenizer, reader, stage), latent_of(model)
    prompts = [source.prompt(0, 0) if spec.prompt is None else spec.prompt] * spec.count
    settings = SampleSpec(total=length, seed=spec.seed)
    prior = [latent.prior(keyed(spec.seed, "prior codes", number), length - 1).tolist() for number in range(spec.count)]
    free = generator.factors("generating, Z from the prior", prompts, prior, settings)[name]
    found = {}
    for value, codes in zs.items():
        number = factor.encode([value])[0]
        steered = generator.factors(f"generating, {value}", prompts, codes[:, : length - 1].tolist(), settings)[name]
        found[value] = share(steered == number), share(free == number)
    return found, list(reader.notes)
