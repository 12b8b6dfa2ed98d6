"""Sampling of sequences. Z is explicit: from the prior, from the posterior of the prompt, shared by a group, or given.

The encoder runs once, when the prompt is read; every later position takes its own Z_t, and the cache holds the rest. Each sequence has
random streams of its own, keyed by (seed, prompt, group, index): it does not depend on the batch that it is in, and its Z with the same
seed gives the same text again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import partial
from itertools import chain, islice, repeat
from typing import Any, Literal

import numpy as np

from freetf_cli.data.tokenizer import Tokenizer
from freetf_cli.errors import FreetfError, InputError, is_out_of_memory
from freetf_cli.generation.batch import MOST_ROWS, Generated, Row, batches, generate_batch
from freetf_cli.generation.choose import choose_tokens
from freetf_cli.generation.decode_loop import Choose, Ended
from freetf_cli.generation.replay import Record, ZFile
from freetf_cli.model.decoder import Decoder
from freetf_cli.model.latent import Latent
from freetf_cli.records.samples import Sample
from freetf_cli.streams import keyed

Warn = Callable[[str], None]
FIRST_ROWS = 16  # of the first batch where rows fill several: the first line should come at once


@dataclass(frozen=True)
class SampleSpec:
    """How to sample. Rows per prompt = groups × count, group by group.

    total: tokens of a row, prompt and continuation; new_tokens, if given, is the length of the continuation instead.
    z: "independent" (one Z a sequence) or "shared" (one Z a group). given_z, of Zs or records, overrides it: number i for row i, or
    groups × count of them for every prompt, or one for all rows. prompt_z: where the prompt's Z comes from; None: from the posterior,
    but with shared Z from the prior, so that what Z decides is seen. temperature 0: the most likely token.
    """

    total: int
    new_tokens: int | None = None
    count: int = 1
    groups: int = 1
    z: Literal["independent", "shared"] = "independent"
    given_z: Iterable[Sequence[Any] | Record] | None = None
    prompt_z: Literal["posterior", "prior"] | None = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    @property
    def source(self) -> Literal["posterior", "prior"]:
        """Where the prompt's Z comes from."""
        return self.prompt_z or ("prior" if self.z == "shared" else "posterior")

    @property
    def choose(self) -> Choose:
        """How a token is chosen from its logits."""
        return partial(choose_tokens, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)


class _Purpose(IntEnum):
    """What a random stream is for; part of its key."""

    PRIOR = 0
    POSTERIOR = 1
    TOKENS = 2


def generate(
    model: Decoder,
    tokenizer: Tokenizer,
    prompts: Iterable[str],
    spec: SampleSpec,
    *,
    together: bool = True,
    warn: Warn = lambda message: None,
) -> Iterator[Sample]:
    """Sequences for every prompt, in order, as they are made.

    together: rows of several prompts may share a batch; False answers each prompt before the next one is read. warn: called, always with
    the same message, before sequences that are longer than the model's context.
    Raises InputError for a prompt that the tokenizer cannot encode or that leaves no room for a token, and for a given Z that does not fit.
    """
    given = _given(spec)
    each = (_rows_of_prompt(model, tokenizer, prompt, place, spec, given) for place, prompt in enumerate(prompts))
    many = spec.groups * spec.count > MOST_ROWS[model.embedding.weight.device.type]
    for rows in [chain.from_iterable(each)] if together else each:
        yield from _sequences(model, tokenizer, rows, spec, warn, many=many)


def replay(
    model: Decoder, tokenizer: Tokenizer, records: Iterable[Record], spec: SampleSpec, prompt: str, *, warn: Warn = lambda message: None
) -> Iterator[Sample]:
    """The sequence of each record again: its Z, its prompt (`prompt` if it tells none) and its place in the random streams."""

    def rows() -> Iterator[Row]:
        for number, record in enumerate(records):
            own = prompt if record.prompt is None else record.prompt
            place = record.prompt_index or 0, record.group or 0, number if record.index is None else record.index
            tokens, total = _encode(tokenizer, own, spec)
            yield _row(model.latent, own, tokens, _length(total, tokens, record, tokenizer), place, spec, record)

    return _sequences(model, tokenizer, rows(), spec, warn)


def _sequences(
    model: Decoder, tokenizer: Tokenizer, rows: Iterator[Row], spec: SampleSpec, warn: Warn, *, many: bool = False
) -> Iterator[Sample]:
    """Rows as sequences, batch by batch. many: more than fit in a batch."""
    context = model.config.context
    try:
        for batch in chain(batches(model, islice(rows, FIRST_ROWS)) if many else [], batches(model, rows)):
            if context is not None and max(len(row.tokens) + len(row.quantiles) for row in batch) > context + 1:
                warn(f"the model was trained on rows of {context + 1} tokens, prompt included: text beyond them may make no sense")
            for row, (tokens, z) in zip(batch, generate_batch(model, batch, spec.choose, tokenizer.separator), strict=True):
                (prompt_index, group, index), given = row.place, row.given
                source = None if z is None else spec.source if given is None else given.prompt_z
                how = (spec.seed, prompt_index, spec.temperature, spec.top_k, spec.top_p, spec.new_tokens, source)
                yield Sample(row.prompt, tokenizer.decode(tokens), group, index, *how, precision=None, checkpoint=None, z=z, given=given)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        what = f"out of memory: {spec.new_tokens or spec.total} tokens a sequence; the model's context is {model.config.context}"
        raise FreetfError(what, hint="lower --max-tokens or --count") from error


def continue_tokens(model: Decoder, prompts: Sequence[Sequence[int]], spec: SampleSpec) -> list[Generated]:
    """One sequence of `spec.total` tokens for each prompt of tokens, all in one batch."""
    rows = [_row(model.latent, "", list(tokens), spec.total, (place, 0, 0), spec) for place, tokens in enumerate(prompts)]
    return generate_batch(model, rows, spec.choose, separator=None)


def continue_places(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    places: Sequence[tuple[int, int, int]],
    spec: SampleSpec,
    separator: int | None,
    ended: Ended | None = None,
) -> Iterator[list[int]]:
    """The new tokens after each tokenized prompt: at most `spec.new_tokens`, up to the separator.

    places: the key of each prompt's random streams; its tokens depend on that key, not on the rest of the batch.
    ended: see `generate_batch`.
    """
    new = spec.new_tokens or 1
    rows = (_row(model.latent, "", list(tokens), len(tokens) + new, place, spec) for tokens, place in zip(prompts, places, strict=True))
    for batch in batches(model, rows):
        for row, (tokens, _) in zip(batch, generate_batch(model, batch, spec.choose, separator, ended), strict=True):
            yield tokens[len(row.tokens) :]


def check_prompts(tokenizer: Tokenizer, prompts: Sequence[str], spec: SampleSpec) -> None:
    """Raise now what `generate` would raise for a later prompt, or for too few records of a file."""
    for prompt in prompts:
        _encode(tokenizer, prompt, spec)
    rows = spec.groups * spec.count * len(prompts)
    if isinstance(spec.given_z, ZFile) and (found := spec.given_z.count(rows)) is not None:
        _check_enough(found, rows, spec)


def prompt_tokens(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """A prompt's tokens as the model reads them: after the separator where the tokenizer has one."""
    ids = tokenizer.encode(prompt, where=f"prompt {prompt[:40]!r}")
    start = [] if tokenizer.separator is None else [tokenizer.separator]
    if not start and not ids:
        raise InputError("the prompt is empty, and this model's data has no begin token", hint="give --prompt TEXT")
    return start + ids


def figure4_samples(model: Decoder, tokenizer: Tokenizer, prompt: str, spec: SampleSpec, groups: int) -> dict[str, list[Sample]]:
    """The paper's Figure 4 for one prompt: one group with independent Z and, of a Free model, `groups` groups that share one Z each."""
    samples = {"independent": list(generate(model, tokenizer, [prompt], replace(spec, z="independent", groups=1)))}
    if model.latent is not None:
        # Another seed: with the same one the shared groups would repeat the token draws of the independent group.
        shared = replace(spec, z="shared", groups=groups, seed=spec.seed + 1)
        samples["shared"] = list(generate(model, tokenizer, [prompt], shared))
    return samples


def _rows_of_prompt(
    model: Decoder, tokenizer: Tokenizer, prompt: str, place: int, spec: SampleSpec, given: Iterator[Record | None]
) -> Iterator[Row]:
    """Every row of a prompt, group by group."""
    tokens, total = _encode(tokenizer, prompt, spec)
    for group in range(spec.groups):
        shared: np.ndarray | None = None
        for index in range(spec.count):
            record = next(given)
            length = _length(total, tokens, record, tokenizer)
            row = _row(model.latent, prompt, tokens, length, (place, group, index), spec, record, shared)
            shared = row.z if spec.z == "shared" else None
            yield row


def _given(spec: SampleSpec) -> Iterator[Record | None]:
    """The record for one row after the other. Where a record serves again, only its Z is left."""
    if spec.given_z is None:
        yield from repeat(None)
        return
    for again in chain([False], repeat(True)):
        read = 0
        for given in spec.given_z:
            record = given if isinstance(given, Record) and not again else _only_z(given)
            yield record
            read += 1
        _check_enough(read, read + 1, spec)
        if read == 1:
            yield from repeat(_only_z(record))


def _only_z(given: Sequence[Any] | Record) -> Record:
    return Record.model_construct(z=given.z if isinstance(given, Record) else list(given))


def _check_enough(records: int, rows: int, spec: SampleSpec) -> None:
    """Raise InputError if there are too few records of given Z for so many rows."""
    each = spec.groups * spec.count
    if records < rows and records not in (1, each):
        need = f"{each} rows per prompt need as many records, or one for all"
        raise InputError(f"--z has {records} records, too few for row {records + 1}", hint=need)


def _encode(tokenizer: Tokenizer, prompt: str, spec: SampleSpec) -> tuple[list[int], int]:
    """A prompt's tokens, and the number of tokens with its continuation."""
    tokens = prompt_tokens(tokenizer, prompt)
    total = spec.total if spec.new_tokens is None else len(tokens) + spec.new_tokens
    if len(tokens) >= total:
        what = f"the prompt has {len(tokens)} tokens, and a row of the data only {total}"
        raise InputError(what, f"prompt {prompt[:40]!r}", "shorten it: the model was not trained to continue a longer one")
    return tokens, total


def _length(total: int, tokens: list[int], given: Record | None, tokenizer: Tokenizer) -> int:
    """The length of a row: `total`, but a replayed text that ended early has fewer codes than a full row."""
    codes = total if given is None else len(given.z)
    if codes >= total - 1:
        return total
    if tokenizer.separator is None or codes < len(tokens):
        raise InputError(f"--z: a record has {codes} codes, and {total - 1} input positions need one each", hint="lower --max-tokens")
    return codes + 1


def _row(
    latent: Latent | None,
    prompt: str,
    tokens: list[int],
    total: int,
    place: tuple[int, int, int],
    spec: SampleSpec,
    given: Record | None = None,
    shared: np.ndarray | None = None,
) -> Row:
    """place: the row's prompt, group and index in it. given: its Z from the user; shared: Z of the group where it is already drawn."""
    key = place[:2] if spec.z == "shared" else place  # a group that shares Z shares the draw of its prompt's Z too
    z = noise = None
    if latent is not None and given is not None:
        z = np.asarray(given.z[: total - 1])
    elif latent is not None:
        z = latent.prior(keyed(spec.seed, _Purpose.PRIOR, *key), total - 1) if shared is None else shared
        if spec.source == "posterior":
            noise = keyed(spec.seed, _Purpose.POSTERIOR, *key).random(latent.noise_shape(len(tokens)), dtype=np.float32)
    quantiles = keyed(spec.seed, _Purpose.TOKENS, *place).random(total - len(tokens))
    return Row(prompt, tokens, place, given, z, noise, quantiles)
