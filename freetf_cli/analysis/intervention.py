"""What Z decides, by setting it: fixed Zs with many sequences each (the paper's Figure 4), and Z taken from one sequence to another.

Intervention: M Zs from the prior, N sequences under each, prompt and all. What the sequences of a Z have in common, Z decided.
Transplant: Z inferred from a sequence A generates under another prompt. What B's output takes from A went through Z.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from string import ascii_uppercase

import numpy as np
from numpy.typing import NDArray

from freetf_cli.analysis.budget import Posterior
from freetf_cli.analysis.factors import Factor, FactorReader
from freetf_cli.analysis.information import UNREAD, agreement, mutual_information, shuffled
from freetf_cli.analysis.letters import PROMPT
from freetf_cli.analysis.statistics import LEAST, bootstrap
from freetf_cli.data.rows import Factors
from freetf_cli.data.tokenizer import Tokenizer
from freetf_cli.model.decoder import Decoder
from freetf_cli.results import SampleGroups
from freetf_cli.results.likelihood import Estimate
from freetf_cli.results.probe import FactorInformation, HeatMap, Intervention, Transplant
from freetf_cli.sampling import SampleSpec, generate

Ints = NDArray[np.int64]
Stage = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]

SHOWN_GROUPS, SHOWN_COUNT = 3, 6  # boxes of Figure 4
MAPPED_GROUPS = 48
LETTER_GROUPS = 64  # Zs of the second, smaller intervention over all prompts


def intervene(
    model: Decoder, tokenizer: Tokenizer, reader: FactorReader, prompt: str, spec: SampleSpec, task: str | None, stage: Stage
) -> Intervention:
    """M = spec.groups Zs × N = spec.count sequences from one prompt. InputError with too few groups for an interval."""
    spec = replace(spec, z="shared", prompt_z="prior")
    with stage("sampling", spec.groups * spec.count) as advance:
        texts = list(_texts(model, tokenizer, [prompt], spec, advance))
    found = reader.read(texts)
    shape = (spec.groups, spec.count)
    values = {factor: found[factor.name].reshape(*shape, *found[factor.name].shape[1:]) for factor in reader.factors}
    for factor in reader.factors:
        if factor.name == "letter":
            values[factor] = _letters_by_prompt(model, tokenizer, reader, factor, spec, stage)
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


def _texts(model: Decoder, tokenizer: Tokenizer, prompts: Sequence[str], spec: SampleSpec, advance: Callable[[int], None]) -> Iterator[str]:
    for sample in generate(model, tokenizer, prompts, spec):
        advance(1)
        yield sample.text


def _information(factor: Factor, values: Ints, seed: int) -> FactorInformation:
    """values [M, N] or [M, N, sites]."""
    found = mutual_information(values, factor.kinds, seed)
    control = mutual_information(shuffled(values, seed), factor.kinds, seed)
    within, between = agreement(values) if factor.name != "letter" else (math.nan, math.nan)
    return FactorInformation(
        factor=factor.name,
        information=found.information,
        shuffled=control.information,
        entropy=found.entropy,
        sites=factor.sites,
        groups=values.shape[0],
        count=values.shape[1],
        read=float((values != UNREAD).mean()),
        within=within,
        between=between,
    )


def _letters_by_prompt(model: Decoder, tokenizer: Tokenizer, reader: FactorReader, factor: Factor, spec: SampleSpec, stage: Stage) -> Ints:
    """Letters written [M, prompts]. The prompt gives the letter, so this asks whether Z overrides it: the same Zs under every prompt."""
    prompts = [f"{letter}>" for letter in ascii_uppercase[: factor.kinds]]
    groups = min(spec.groups, LETTER_GROUPS)
    # Prompts come one after the other, groups within them: [prompt, group]. A Z is keyed by its prompt's place too, so it is given.
    codes = np.random.default_rng(spec.seed).integers(0, 2 ** _bits(model), (groups, spec.total - 1)).tolist()
    given = replace(spec, z="independent", groups=groups, count=1, given_z=codes)
    with stage("sampling, other prompts", groups * len(prompts)) as advance:
        texts = list(_texts(model, tokenizer, prompts, given, advance))
    return np.ascontiguousarray(reader.read(texts)[factor.name].reshape(len(prompts), groups).T)


def _bits(model: Decoder) -> int:
    from freetf_cli.model.free_transformer import FreeTransformer

    assert isinstance(model, FreeTransformer)
    return model.latent.bits


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


def _shown(model: Decoder, tokenizer: Tokenizer, prompt: str, spec: SampleSpec, groups: Sequence[Sequence[str]]) -> list[SampleGroups]:
    """A blue box of independent Zs, and the first green ones."""
    blue = replace(spec, z="independent", groups=1, count=min(SHOWN_COUNT, spec.count), seed=spec.seed + 1)
    independent = [sample.text for sample in generate(model, tokenizer, [prompt], blue)]
    green = [list(group[:SHOWN_COUNT]) for group in groups[:SHOWN_GROUPS]]
    return [SampleGroups("", False, [independent], prompt), SampleGroups("", True, green, prompt)]


def transplant(
    model: Decoder,
    tokenizer: Tokenizer,
    reader: FactorReader,
    posterior: Posterior,
    rows: Sequence[Factors],
    spec: SampleSpec,
    task: str | None,
    stage: Stage,
) -> list[Transplant]:
    """The Zs of the first rows under prompts of other rows. Empty with fewer than 20 rows whose factors are known."""
    known = [number for number, row in enumerate(rows) if row][: spec.count]
    if len(known) < LEAST:
        return []
    given = posterior.z[known].tolist()
    prompts = [_other_prompt(rows[number], reader) if task == "letters" else "" for number in known]
    if task == "coins":
        prompts = [str(1 - rows[number]["z"]) for number in known]
    plain = replace(spec, z="independent", groups=1, count=1, given_z=given)
    with stage("transplanting Z", len(known)) as advance:
        texts = list(_texts(model, tokenizer, prompts, plain, advance))
    truth, found = reader.truth([rows[number] for number in known]), reader.read(texts)
    return [_taken(factor, truth[factor.name], found[factor.name], spec.seed) for factor in reader.factors if factor.name != "letter"]


def _other_prompt(row: Factors, reader: FactorReader) -> str:
    """Another letter than the row's own, where there is another."""
    letters = next(factor.kinds for factor in reader.factors if factor.name == "letter")
    return f"{ascii_uppercase[(ascii_uppercase.index(row['letter']) + letters // 2) % letters]}>"


def _taken(factor: Factor, truth: Ints, found: Ints, seed: int) -> Transplant:
    """Agreement of what was generated with the sequence whose Z it had, and with the next one."""
    own, other = _matches(factor, truth, found, seed), _matches(factor, np.roll(truth, 1, axis=0), found, seed)
    return Transplant(factor.name, own, other, len(truth))


def _matches(factor: Factor, truth: Ints, found: Ints, seed: int) -> Estimate:
    if factor.sites == 1:
        read = (found != UNREAD) & (truth != UNREAD)
        return bootstrap((found == truth) & read, read, seed=seed)
    common, union = (truth & found).sum(1), (truth | found).sum(1)
    return bootstrap(common / np.maximum(union, 1), union > 0, seed=seed)
