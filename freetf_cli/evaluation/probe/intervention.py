"""What Z decides, measured by setting it: many sequences under fixed Zs (the paper's Figure 4), and the Z of one sequence used for another.

Intervention: M Zs from the prior, N sequences generated under each. What the sequences of one Z have in common, Z decided.
Latent swap: Z inferred from a sequence A, used to generate under another prompt. What the output has in common with A, Z carried.

Shapes: M Zs (groups), N sequences under each, S sites.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from freetf_cli.data.rows import Factors
from freetf_cli.data.tokenizer import Tokenizer
from freetf_cli.evaluation.posterior import latent_of
from freetf_cli.evaluation.probe.agreement import agreement
from freetf_cli.evaluation.probe.information import mutual_information, shuffled
from freetf_cli.evaluation.probe.rate import Posterior
from freetf_cli.evaluation.statistics import LEAST, bootstrap
from freetf_cli.generation.sampling import SampleSpec, generate
from freetf_cli.model.decoder import Decoder
from freetf_cli.records.intervention import FactorInformation, HeatMap, Intervention
from freetf_cli.records.likelihood import Estimate
from freetf_cli.records.probe import LatentSwap
from freetf_cli.records.samples import SampleGroups
from freetf_cli.tasks.factors import UNREAD, Factor, Ints, Reading, RowReader, encode

Stage = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]  # (name, total): progress of a part

SHOWN_GROUPS, SHOWN_COUNT = 3, 6  # boxes of Figure 4, and sequences in each
MAPPED_GROUPS = 48  # Zs in a heat map
PROMPTED_GROUPS, PROMPTED_COUNT = 64, 32  # Zs and sequences of the smaller intervention over all prompts


def intervene(model: Decoder, tokenizer: Tokenizer, reader: RowReader, prompt: str, spec: SampleSpec, stage: Stage) -> Intervention:
    """Generate spec.count sequences under each of spec.groups Zs, all from one prompt, and measure what the Zs decide.

    InputError with too few groups for an interval.
    """
    spec = replace(spec, z="shared", prompt_z="prior")
    with stage("sampling", spec.groups * spec.count) as advance:
        texts = list(_texts(model, tokenizer, [prompt], spec, advance))
    readings = reader.read_all(texts)
    found = _encode(reader, readings)
    shape = (spec.groups, spec.count)
    values = {factor: found[factor.name].reshape(*shape, *found[factor.name].shape[1:]) for factor in reader.factors}
    for factor in reader.factors:
        if factor.given:
            values[factor] = _by_prompt(model, tokenizer, reader, factor, spec, stage)
    factors = []
    with stage("estimating information", len(values)) as advance:
        for factor, seen in values.items():
            factors += [_information(factor, seen, spec.seed)] if len(factor.values) > 1 else []
            advance(1)
    groups = [texts[start : start + spec.count] for start in range(0, len(texts), spec.count)]
    return Intervention(
        prompt=prompt,
        prompt_z="prior",
        factors=factors,
        valid=_valid(readings, shape, spec.seed),
        heat_maps=_heat_maps(reader, groups[:MAPPED_GROUPS]),
        samples=_shown(model, tokenizer, reader, prompt, spec, groups),
        readers=list(reader.notes),
    )


def _texts(model: Decoder, tokenizer: Tokenizer, prompts: Sequence[str], spec: SampleSpec, advance: Callable[[int], None]) -> Iterator[str]:
    for sample in generate(model, tokenizer, prompts, spec):
        advance(1)
        yield sample.text


def _encode(reader: RowReader, readings: Sequence[Reading]) -> dict[str, Ints]:
    return encode(reader.factors, [reading.factors for reading in readings])


def _information(factor: Factor, values: Ints, seed: int) -> FactorInformation:
    """values: [M, N], or [M, N, S] for a factor with sites."""
    found = mutual_information(values, len(factor.values), seed)
    control = mutual_information(shuffled(values, seed), len(factor.values), seed)
    agreed = agreement(factor.name, list(values))
    return FactorInformation(
        factor=factor.name,
        information=found.information,
        shuffled=control.information,
        entropy=found.entropy,
        sites=factor.sites,
        groups=values.shape[0],
        count=values.shape[1],
        read=float((values != UNREAD).mean()),
        within=agreed.within,
        between=agreed.across,
        given=factor.given,
    )


def _by_prompt(model: Decoder, tokenizer: Tokenizer, reader: RowReader, factor: Factor, spec: SampleSpec, stage: Stage) -> Ints:
    """Values [M, N] of a factor that the prompt gives, each Z under prompts drawn at random: does Z override the prompt?"""
    rng = np.random.default_rng(spec.seed)
    shape = min(spec.groups, PROMPTED_GROUPS), min(spec.count, PROMPTED_COUNT)
    prompts = [reader.prompts[number] for number in rng.integers(len(reader.prompts), size=shape).flatten()]
    latent = latent_of(model)
    codes = [z for _ in range(shape[0]) for z in [latent.prior(rng, spec.total - 1).tolist()] * shape[1]]
    given = replace(spec, z="independent", groups=1, count=1, given_z=codes)
    with stage("sampling, other prompts", len(prompts)) as advance:
        texts = list(_texts(model, tokenizer, prompts, given, advance))
    return _encode(reader, reader.read_all(texts))[factor.name].reshape(shape)


def _valid(readings: Sequence[Reading], shape: tuple[int, int], seed: int) -> Estimate | None:
    """The share of valid outputs, with an interval over Zs; None where validity means nothing."""
    if any(reading.valid is None for reading in readings):
        return None
    return bootstrap(np.array([reading.valid for reading in readings], np.float64).reshape(shape).mean(1), seed=seed)


def _heat_maps(reader: RowReader, groups: Sequence[Sequence[str]]) -> list[HeatMap]:
    """For each Z the share of its outputs with a mark at each place; Zs in the order of the first map's mean place."""
    marks = [[reader.marks(text) for text in group] for group in groups]
    titles = marks[0][0]
    if not titles:
        return []
    length = max(len(one[title]) for group in marks for one in group for title in titles)
    padded = {title: [[one[title] + [False] * (length - len(one[title])) for one in group] for group in marks] for title in titles}
    shares = [np.asarray(np.mean(rows, axis=1), np.float64) for rows in padded.values()]
    order = np.argsort((shares[0] * np.arange(length)).sum(1) / np.maximum(shares[0].sum(1), 1e-9), kind="stable")
    return [HeatMap(title, share[order].round(4).tolist()) for title, share in zip(titles, shares, strict=True)]


def _shown(
    model: Decoder, tokenizer: Tokenizer, reader: RowReader, prompt: str, spec: SampleSpec, groups: Sequence[Sequence[str]]
) -> list[SampleGroups]:
    """A blue box of samples with independent Zs, and the first green ones, of samples that share a Z."""
    blue = replace(spec, z="independent", groups=1, count=min(SHOWN_COUNT, spec.count), seed=spec.seed + 1)
    independent = [sample.text for sample in generate(model, tokenizer, [prompt], blue)]
    green = [list(group[:SHOWN_COUNT]) for group in groups[:SHOWN_GROUPS]]
    spans = {text: found for text in chain(independent, *green) if (found := reader.spans(text))}
    return [SampleGroups("", False, [independent], prompt, spans), SampleGroups("", True, green, prompt, spans)]


def latent_swap(
    model: Decoder,
    tokenizer: Tokenizer,
    reader: RowReader,
    posterior: Posterior,
    rows: Sequence[Factors],
    spec: SampleSpec,
    stage: Stage,
) -> list[LatentSwap]:
    """Generate with the Zs of spec.count rows under prompts of other rows. The control has the same prompts and the Zs of yet other rows.

    Empty for fewer than 20 rows with known factors; a factor that is read from fewer than 20 outputs is left out.
    """
    known = np.array([number for number, row in enumerate(rows) if row], np.int64)
    if len(known) < LEAST:
        return []
    known = np.random.default_rng(spec.seed).permutation(known)[: spec.count]
    prompts = [reader.other_prompt(rows[number]) for number in known]
    plain = replace(spec, z="independent", groups=1, count=1)
    found = []
    with stage("swapping Z", 2 * len(known)) as advance:
        for donors in (known, posterior.other[known]):
            given = replace(plain, given_z=posterior.z[donors].tolist())
            found.append(_encode(reader, reader.read_all(list(_texts(model, tokenizer, prompts, given, advance)))))
    truth, documents = encode(reader.factors, [rows[number] for number in known]), posterior.documents[known]
    results = []
    for factor in reader.factors:
        own, other = (_matches(factor, truth[factor.name], numbers[factor.name]) for numbers in found)
        if not factor.given and min(own[1].sum(), other[1].sum()) >= LEAST:
            taken, chance = (bootstrap(*part, clusters=documents, seed=spec.seed) for part in (own, other))
            results.append(LatentSwap(factor.name, taken, chance, int(own[1].sum())))
    return results


def _matches(factor: Factor, truth: Ints, found: Ints) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How far each output has the factor's true value, and whether that can be said, [N] each. For marks: |A ∩ B| / |A ∪ B|."""
    if factor.sites == 1:
        read = (found != UNREAD) & (truth != UNREAD)
        return ((found == truth) & read).astype(np.float64), read.astype(np.float64)
    common, union = (truth & found).sum(1), (truth | found).sum(1)
    return common / np.maximum(union, 1), (union > 0).astype(np.float64)
