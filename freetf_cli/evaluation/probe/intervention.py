"""What Z decides, by setting it: fixed Zs with many sequences each (the paper's Figure 4), and Z taken from one sequence to another.

Intervention: M Zs from the prior, N sequences under each, prompt and all. What the sequences of a Z have in common, Z decided.
Latent swap: Z inferred from a sequence A generates under another prompt. What B's output takes from A went through Z.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from string import ascii_uppercase

import numpy as np
from numpy.typing import NDArray

from freetf_cli.data.rows import Factors
from freetf_cli.data.tokenizer import Tokenizer
from freetf_cli.evaluation.probe.agreement import agreement
from freetf_cli.evaluation.probe.factors import Factor, FactorReader
from freetf_cli.evaluation.probe.information import UNREAD, mutual_information, shuffled
from freetf_cli.evaluation.probe.letters import PROMPT
from freetf_cli.evaluation.probe.rate import Posterior
from freetf_cli.evaluation.statistics import LEAST, bootstrap
from freetf_cli.generation.sampling import SampleSpec, generate
from freetf_cli.model.free_transformer import FreeTransformer
from freetf_cli.records.likelihood import Estimate
from freetf_cli.records.probe import FactorInformation, HeatMap, Intervention, LatentSwap
from freetf_cli.records.samples import SampleGroups

Ints = NDArray[np.int64]
Stage = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]  # (name, total): progress of a part

SHOWN_GROUPS, SHOWN_COUNT = 3, 6  # boxes of Figure 4
MAPPED_GROUPS = 48
PROMPTED_GROUPS, PROMPTED_COUNT = 64, 32  # of the second, smaller intervention over all prompts


def intervene(
    model: FreeTransformer, tokenizer: Tokenizer, reader: FactorReader, prompt: str, spec: SampleSpec, task: str | None, stage: Stage
) -> Intervention:
    """M = spec.groups Zs × N = spec.count sequences from one prompt. InputError with too few groups for an interval."""
    spec = replace(spec, z="shared", prompt_z="prior")
    with stage("sampling", spec.groups * spec.count) as advance:
        texts = list(_texts(model, tokenizer, [prompt], spec, advance))
    found = reader.read(texts)
    shape = (spec.groups, spec.count)
    values = {factor: found[factor.name].reshape(*shape, *found[factor.name].shape[1:]) for factor in reader.factors}
    for factor in reader.factors:
        if factor.given:
            values[factor] = _by_prompt(model, tokenizer, reader, factor, spec, stage)
    factors = []
    with stage("estimating information", len(values)) as advance:
        for factor, seen in values.items():
            factors += [_information(factor, seen, spec.seed)] if factor.kinds > 1 else []
            advance(1)
    groups = [texts[start : start + spec.count] for start in range(0, len(texts), spec.count)]
    return Intervention(
        prompt=prompt,
        prompt_z="prior",
        factors=factors,
        valid=_valid(reader, groups, spec.seed),
        heat_maps=_heat_maps(groups) if task == "letters" else [],
        samples=_shown(model, tokenizer, prompt, spec, groups),
        readers=list(reader.notes),
    )


def _texts(
    model: FreeTransformer, tokenizer: Tokenizer, prompts: Sequence[str], spec: SampleSpec, advance: Callable[[int], None]
) -> Iterator[str]:
    for sample in generate(model, tokenizer, prompts, spec):
        advance(1)
        yield sample.text


def _information(factor: Factor, values: Ints, seed: int) -> FactorInformation:
    """values [M, N] or [M, N, sites]."""
    found = mutual_information(values, factor.kinds, seed)
    control = mutual_information(shuffled(values, seed), factor.kinds, seed)
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
    )


def _by_prompt(model: FreeTransformer, tokenizer: Tokenizer, reader: FactorReader, factor: Factor, spec: SampleSpec, stage: Stage) -> Ints:
    """Values written [M, N] of a factor that the prompt gives: each Z under prompts drawn at random. Does Z override the prompt?"""
    rng = np.random.default_rng(spec.seed)
    shape = min(spec.groups, PROMPTED_GROUPS), min(spec.count, PROMPTED_COUNT)
    prompts = [reader.prompts[number] for number in rng.integers(len(reader.prompts), size=shape).flatten()]
    codes = rng.integers(0, 2**model.latent.bits, (shape[0], spec.total - 1)).repeat(shape[1], axis=0).tolist()
    given = replace(spec, z="independent", groups=1, count=1, given_z=codes)
    with stage("sampling, other prompts", len(prompts)) as advance:
        texts = list(_texts(model, tokenizer, prompts, given, advance))
    return reader.read(texts)[factor.name].reshape(shape)


def _valid(reader: FactorReader, groups: Sequence[Sequence[str]], seed: int) -> Estimate | None:
    """Share of outputs that the task could have made; its interval is over Zs."""
    if reader.valid is None:
        return None
    check = reader.valid
    return bootstrap([np.mean([check(text) for text in group]) for group in groups], seed=seed)


def _heat_maps(groups: Sequence[Sequence[str]]) -> list[HeatMap]:
    """Where each Z puts the letter, and where the noise; groups in the order of where their letters lie."""
    shown = [[text[PROMPT:] for text in group] for group in groups[:MAPPED_GROUPS]]
    length = max(len(line) for group in shown for line in group)
    chars = np.array([[list(line.ljust(length)) for line in group] for group in shown])
    letters, noise = (np.asarray(part.mean(1), np.float64) for part in (np.isin(chars, list(ascii_uppercase)), chars == "!"))
    order = np.argsort((letters * np.arange(length)).sum(1) / np.maximum(letters.sum(1), 1e-9), kind="stable")
    return [HeatMap("the letter", letters[order].round(4).tolist()), HeatMap("noise", noise[order].round(4).tolist())]


def _shown(
    model: FreeTransformer, tokenizer: Tokenizer, prompt: str, spec: SampleSpec, groups: Sequence[Sequence[str]]
) -> list[SampleGroups]:
    """A blue box of independent Zs, and the first green ones."""
    blue = replace(spec, z="independent", groups=1, count=min(SHOWN_COUNT, spec.count), seed=spec.seed + 1)
    independent = [sample.text for sample in generate(model, tokenizer, [prompt], blue)]
    green = [list(group[:SHOWN_COUNT]) for group in groups[:SHOWN_GROUPS]]
    return [SampleGroups("", False, [independent], prompt), SampleGroups("", True, green, prompt)]


def latent_swap(
    model: FreeTransformer,
    tokenizer: Tokenizer,
    reader: FactorReader,
    posterior: Posterior,
    rows: Sequence[Factors],
    spec: SampleSpec,
    stage: Stage,
) -> list[LatentSwap]:
    """The Zs of spec.count rows under prompts of other rows; the control has the same prompts, and other rows' Zs.

    Empty with fewer than 20 rows whose factors are known; a factor that is read from fewer than 20 outputs is left out.
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
            found.append(reader.read(list(_texts(model, tokenizer, prompts, given, advance))))
    truth, documents = reader.truth([rows[number] for number in known]), posterior.documents[known]
    results = []
    for factor in reader.factors:
        own, other = (_matches(factor, truth[factor.name], texts[factor.name]) for texts in found)
        if not factor.given and min(own[1].sum(), other[1].sum()) >= LEAST:
            taken, chance = (bootstrap(*part, clusters=documents, seed=spec.seed) for part in (own, other))
            results.append(LatentSwap(factor.name, taken, chance, int(own[1].sum())))
    return results


def _matches(factor: Factor, truth: Ints, found: Ints) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How far each output has the factor's true value, and whether that can be said of it, [N] each."""
    if factor.sites == 1:
        read = (found != UNREAD) & (truth != UNREAD)
        return ((found == truth) & read).astype(np.float64), read.astype(np.float64)
    common, union = (truth & found).sum(1), (truth | found).sum(1)
    return common / np.maximum(union, 1), (union > 0).astype(np.float64)
