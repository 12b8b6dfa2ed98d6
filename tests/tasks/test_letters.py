"""letters: exact entropies by enumeration, factors that agree with the text, and readings of generated rows."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict

import numpy as np
import pytest

from freetf_cli.errors import InputError
from freetf_cli.tasks import make_task
from freetf_cli.tasks.letters import position_ambiguity

GOLDEN = (  # rows 0 and 2,000 of seed 7: if they change, runs are no longer reproducible
    ("X>______!_____________________!__!_!______XXXXXXXX________________", {"letter": "X", "position": 40, "noise": [6, 28, 31, 33]}),
    (
        "R>!_______!_!__________________RRRRRR!R____!_________________!___!",
        {"letter": "R", "position": 29, "noise": [0, 8, 10, 35, 41, 59, 63]},
    ),
)
SHORT = make_task("letters", {"length": 13, "target": 4})


def test_golden_rows() -> None:
    rows = [make_task("letters", {}).examples(7, i, 1)[0] for i in (0, 2000)]
    assert tuple((row.text, row.factors) for row in rows) == GOLDEN


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


@pytest.mark.parametrize(
    ("text", "position", "valid"),
    [
        ("K>__KKKK_______", 2, True),
        ("K>_!K!KK_______", 2, True),
        ("K>_!!!KK_______", 2, True),  # the first of the starts that are possible
        ("K>_____________", None, False),
        ("K>__KKKKK______", 2, False),
        ("K>__KK_K_______", 2, False),
        ("K>__KKQK_______", 2, False),
        ("K>__KKKK__>____", 2, False),
        ("K>_________!KKK", 9, True),
        ("K>__________KKK", 9, False),  # a target cannot start at 10
        ("K>__KKKK_____", 2, False),
        ("", None, False),
    ],
)
def test_reading_a_row(text: str, position: int | None, valid: bool) -> None:
    reading = SHORT.read(text)
    assert (reading.factors["position"], reading.valid) == (position, valid)


def test_the_letter_of_a_row_is_the_commonest() -> None:
    assert SHORT.read("K>_QQKQ________").factors["letter"] == "Q"
    assert SHORT.read("K>_____________").factors["letter"] is None


def test_every_true_row_is_valid_and_its_start_is_nearly_always_found() -> None:
    examples = make_task("letters", {}).examples(0, 0, 2000)
    readings = make_task("letters", {}).read_all([example.text for example in examples])
    assert all(reading.valid for reading in readings)
    assert np.mean([r.factors["position"] == e.factors["position"] for r, e in zip(readings, examples, strict=True)]) > 0.99
    assert all(r.factors["noise"] == e.factors["noise"] for r, e in zip(readings, examples, strict=True))


def test_spans_and_marks() -> None:
    assert SHORT.spans("K>_!KQK") == [("K>", "prompt"), ("_", "blank"), ("!", "noise"), ("K", "target"), ("Q", "invalid"), ("K", "target")]
    assert SHORT.marks("K>_!K") == {"the letter": [False, False, True], "noise": [False, True, False]}


def test_prompts() -> None:
    assert SHORT.other_prompt({"letter": "A"}) == "N>" and len(SHORT.prompts) == 26
    with pytest.raises(InputError, match="begins with a letter and '>'"):
        SHORT.check_prompt("AB>")
