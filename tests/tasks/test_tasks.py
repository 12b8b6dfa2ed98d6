"""Synthetic tasks: exact entropies by enumeration, factors that agree with the text, streams that never change."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from freetf_cli.data.prepare import task_tokenizer
from freetf_cli.errors import InputError
from freetf_cli.tasks import TASKS, make_task
from freetf_cli.tasks.base import PAD, stream_seed
from freetf_cli.tasks.coins import Coins
from freetf_cli.tasks.letters import position_ambiguity

GOLDEN = {  # rows 0 and 2,000 of seed 7: they may never change, or runs stop being reproducible
    "letters": (
        ("X>______!_____________________!__!_!______XXXXXXXX________________", {"letter": "X", "position": 40, "noise": [6, 28, 31, 33]}),
        (
            "R>!_______!_!__________________RRRRRR!R____!_________________!___!",
            {"letter": "R", "position": 29, "noise": [0, 8, 10, 35, 41, 59, 63]},
        ),
    ),
    "coins": (
        ("1010111110111011111111111111101111110111111111101111111111111111", {"z": 1}),
        ("0000010000000000000001000010000000000000000101000000000011000000", {"z": 0}),
    ),
    "reviews": (
        (
            "Here is a two-hour western by a former actor. The editing is flat. One of the worst films of the year.",
            {"sentiment": "negative", "genre": "western"},
        ),
        (
            "This thriller is about a pilot with no past. The ending is clever, and the acting sharp too.",
            {"sentiment": "positive", "genre": "thriller"},
        ),
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_rows(name: str) -> None:
    rows = [make_task(name, {}).examples(7, i, 1)[0] for i in (0, 2000)]
    assert tuple((row.text, row.factors) for row in rows) == GOLDEN[name]


def test_golden_blocks() -> None:
    row = make_task("blocks", {}).examples(7, 0, 1)[0]
    assert row.text.startswith("mlpcr.mxghw.fncsh.") and row.text.endswith("qcone#wddnjwm")
    assert row.factors == {"answer": "dnjwm", "block": 10}


@pytest.mark.parametrize("name", TASKS)
def test_rows_do_not_depend_on_how_they_are_asked_for(name: str) -> None:
    whole = make_task(name, {}).tokens(3, 1000, 60)  # across the border of a block
    task = make_task(name, {})
    parts = [task.tokens(3, start, 7) for start in range(1000, 1060, 7)]
    assert (np.concatenate(parts)[:60] == whole).all()
    assert (make_task(name, {}).tokens(3, 1059, 1) == whole[-1:]).all()
    assert not (make_task(name, {}).tokens(4, 1000, 60) == whole).all()


@pytest.mark.parametrize("name", TASKS)
def test_tokens_are_the_tokenized_examples(name: str) -> None:
    task = make_task(name, {})
    tokenizer = task_tokenizer(task)
    edge = [tokenizer.separator] if task.separator else []
    for tokens, example in zip(task.tokens(0, 0, 50), task.examples(0, 0, 50), strict=True):
        assert tokens[tokens != PAD].tolist() == [*edge, *tokenizer.encode(example.text), *edge]
        assert len(tokens) == task.row_tokens
        assert (tokens[: len(tokens) - (tokens == PAD).sum()] != PAD).all(), "padding stands at the end only"


def test_another_process_makes_the_same_rows() -> None:
    code = "from freetf_cli.tasks import make_task; print([make_task(n, {}).examples(5, 9, 2) for n in ('letters', 'reviews')])"
    here = str([make_task(name, {}).examples(5, 9, 2) for name in ("letters", "reviews")])
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert out.stdout.strip() == here


def test_splits_have_streams_of_their_own() -> None:
    task = make_task("letters", {"noise": 0.4})
    train, val = (task.tokens(stream_seed(0, split), 0, 2000) for split in ("train", "val"))
    assert not {row.tobytes() for row in train} & {row.tobytes() for row in val}


# --- letters ---------------------------------------------------------------------------------------------------------


def letters_by_enumeration(length: int, target: int, noise: float) -> tuple[float, float]:
    """H(S | letter) and H(position | S, letter) in bits, over every start and noise pattern."""
    joint: dict[str, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    places = length - target + 1
    for start, hidden in itertools.product(range(places), itertools.product((0, 1), repeat=length)):
        line = "".join("!" if hidden[i] else "K" if start <= i < start + target else "_" for i in range(length))
        joint[line][start] += noise ** sum(hidden) * (1 - noise) ** (length - sum(hidden)) / places
    of_line = [sum(starts.values()) for starts in joint.values()]
    both = -sum(p * math.log2(p) for starts in joint.values() for p in starts.values() if p)
    line_entropy = -sum(p * math.log2(p) for p in of_line if p)
    return line_entropy, both - line_entropy


@pytest.mark.parametrize(
    ("length", "target", "noise"), [(9, 3, 0.3), (8, 2, 0.7), (7, 1, 0.2), (6, 6, 0.4), (9, 4, 0.5), (8, 3, 0.0), (8, 3, 1.0)]
)
def test_letters_entropy_by_enumeration(length: int, target: int, noise: float) -> None:
    given_letter, ambiguity = letters_by_enumeration(length, target, noise)
    assert position_ambiguity(length, target, noise) == pytest.approx(ambiguity, abs=1e-12)
    task = make_task("letters", {"length": length, "target": target, "noise": noise, "letters": 5})
    assert task.entropy()["given_letter"] == pytest.approx(given_letter, abs=1e-12)
    assert task.entropy()["sequence"] == pytest.approx(given_letter + math.log2(5), abs=1e-12)
    assert task.floor_bits == task.entropy()["given_letter"]


def test_letters_has_the_entropies_of_the_specification() -> None:
    rounded = {name: round(bits, 3) for name, bits in make_task("letters", {}).entropy().items()}
    assert rounded == {"letter": 4.700, "position": 5.833, "noise": 21.587, "given_letter": 27.412, "sequence": 32.112}
    assert position_ambiguity(64, 8, 1 / 16) == pytest.approx(0.008, abs=5e-4)


def test_letters_factors_rebuild_the_text() -> None:
    for row in make_task("letters", {"noise": 0.2}).examples(1, 0, 300):
        letter, start, noise = (row.factors[key] for key in ("letter", "position", "noise"))
        line = ["_"] * 64
        line[start : start + 8] = letter * 8
        for place in noise:
            line[place] = "!"
        assert row.text == f"{letter}>" + "".join(line)


def test_letters_frequencies() -> None:
    """Within five standard deviations of what they should be."""
    rows = 40_960
    tokens = make_task("letters", {}).tokens(0, 0, rows)
    counts = np.bincount(tokens[:, 0], minlength=26)
    assert np.abs(counts - rows / 26).max() < 5 * math.sqrt(rows / 26)
    hidden = int((tokens[:, 2:] == 27).sum())
    assert abs(hidden - rows * 4) < 5 * math.sqrt(rows * 64 * (1 / 16) * (15 / 16))
    starts = np.bincount([row.factors["position"] for row in make_task("letters", {}).examples(0, 0, 10_240)], minlength=57)
    assert len(starts) == 57 and np.abs(starts - 10_240 / 57).max() < 5 * math.sqrt(10_240 / 57)


def test_letters_alphabet_and_prompts() -> None:
    task = make_task("letters", {})
    assert task.alphabet is not None and len(task.alphabet) == 29 and task.row_tokens == 66 and not task.separator
    assert task.prompt(0, 0) == "K>" and {task.prompt(0, i)[0] for i in range(26)} == set(task.alphabet[:26])


# --- coins -----------------------------------------------------------------------------------------------------------


def coins_by_enumeration(length: int, flip: float) -> dict[tuple[int, ...], float]:
    """The probability of every sequence, from the story: Z is fair, each symbol is Z flipped with probability flip."""
    return {
        x: sum(0.5 * math.prod(1 - flip if symbol == z else flip for symbol in x) for z in (0, 1))
        for x in itertools.product((0, 1), repeat=length)
    }


@pytest.mark.parametrize("flip", [0.1, 0.25, 0.5, 0.9])
def test_coins_by_enumeration(flip: float) -> None:
    length = 9
    task = make_task("coins", {"length": length, "flip": flip})
    assert isinstance(task, Coins)
    entropy = -sum(p * math.log2(p) for p in coins_by_enumeration(length, flip).values())
    assert task.entropy()["sequence"] == pytest.approx(entropy, abs=1e-12)
    assert task.floor_bits == pytest.approx(entropy - 1, abs=1e-12)
    for seen in range(5):
        longer = coins_by_enumeration(seen + 1, flip)
        for x, p in coins_by_enumeration(seen, flip).items():
            assert task.next_is_one(sum(x), seen) == pytest.approx(longer[(*x, 1)] / p, abs=1e-12)


def test_coins_and_the_misprints_of_the_paper() -> None:
    """The printed equation (2) gives 2ε(1 − ε) after a single 1: the probability of a 0, not of a 1."""
    flip = 0.1
    task = make_task("coins", {"flip": flip})
    assert isinstance(task, Coins)
    assert 1 - task.next_is_one(1, 1) == pytest.approx(2 * flip * (1 - flip))


def test_coins_without_noise_and_long() -> None:
    assert make_task("coins", {"flip": 0, "length": 12}).entropy() == {"sequence": 1.0, "given_first": 0.0}
    long = make_task("coins", {"flip": 0.5, "length": 2000})
    assert long.entropy()["sequence"] == pytest.approx(2000, rel=1e-9)


def test_coins_factor_and_frequency() -> None:
    rows = make_task("coins", {"flip": 0.1}).examples(0, 0, 2000)
    flips = sum(row.text.count(str(1 - row.factors["z"])) for row in rows)
    assert abs(flips - 2000 * 64 * 0.1) < 5 * math.sqrt(2000 * 64 * 0.09)
    assert abs(sum(row.factors["z"] for row in rows) - 1000) < 5 * math.sqrt(500)


# --- reviews and blocks ----------------------------------------------------------------------------------------------


def test_reviews_are_short_varied_and_told_apart_by_their_words() -> None:
    rows = make_task("reviews", {}).examples(0, 0, 2000)
    assert max(len(row.text) for row in rows) <= 200 and all(row.text.isascii() for row in rows)
    assert len({row.text for row in rows}) > 1500
    assert not any("{" in row.text for row in rows)
    positive = sum(row.factors["sentiment"] == "positive" for row in rows)
    assert abs(positive - 1000) < 5 * math.sqrt(500)
    for row in rows:
        words = row.text.lower()
        other = "loved" if row.factors["sentiment"] == "negative" else "hated"
        assert other not in words


@pytest.mark.parametrize(
    ("params", "count", "answer"),
    [
        ({}, 52, slice(0, 5)),
        ({"n": 8}, 34, slice(0, 8)),
        ({"n": 5, "which": "first"}, 52, slice(0, 1)),
        ({"n": 8, "which": "last", "query": 3}, 34, slice(7, 8)),
        ({"n": 6, "query": 1, "blocks": 7}, 7, slice(0, 6)),
    ],
)
def test_blocks_have_one_answer(params: dict[str, object], count: int, answer: slice) -> None:
    task = make_task("blocks", params)
    assert task.params["blocks"] == count
    for row in task.examples(2, 0, 200):
        question, _, rest = row.text.partition("#")
        blocks, query = question.split("."), task.params["query"]
        holding = [i for i, block in enumerate(blocks) if set(rest[:query]) <= set(block)]
        assert len(blocks) == count and all(len(set(block)) == len(block) == task.params["n"] for block in blocks)
        assert len(set(rest[:query])) == query and holding == [row.factors["block"]]
        assert rest[query:] == row.factors["answer"] == blocks[holding[0]][answer]
        assert 1 + len(question) + 1 + query == task.loss_start
    assert task.prompt(0, 3).endswith(task.prompt(0, 3)[-task.params["query"] :]) and len(task.prompt(0, 3)) == task.loss_start - 1


def test_blocks_row_is_the_released_one() -> None:
    assert make_task("blocks", {}).row_tokens == 319 + 2
    assert make_task("blocks", make_task("blocks", {"n": 8}).params).params == make_task("blocks", {"n": 8}).params


# --- parameters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("leters", {}, "did you mean 'letters'"),
        ("letters", {"nose": 1}, "did you mean 'noise'"),
        ("letters", {"noise": 1.5}, "outside 0 … 1"),
        ("letters", {"noise": "nan"}, "must be a number"),
        ("letters", {"noise": math.inf}, "must be a number"),
        ("letters", {"length": 8.5}, "whole number"),
        ("letters", {"length": True}, "whole number"),
        ("letters", {"target": 65}, "longer than length"),
        ("blocks", {"which": "lst"}, "did you mean 'last'"),
        ("blocks", {"query": 5}, "less than n"),
        ("reviews", {"length": 3}, "no parameter"),
    ],
)
def test_bad_parameters(name: str, params: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_task(name, params)


def test_numbers_as_text() -> None:
    assert make_task("letters", {"noise": "1/16", "length": "64"}).params == make_task("letters", {}).params
