"""Readings of letters rows, and agreement of groups with a planted answer."""

import math

import numpy as np
import pytest

from freetf_cli.evaluation.probe.agreement import agreement, letters_agreement
from freetf_cli.evaluation.probe.letters import read_letters
from freetf_cli.records import DataFacts
from freetf_cli.records.samples import Agreement
from freetf_cli.tasks import make_task

FACTS = DataFacts("letters", "letters", 29, 65, 65, 27.4, "", params={"length": 13, "target": 4})


@pytest.mark.parametrize(
    ("text", "start", "valid"),
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
        ("K>__________KKK", 10, False),
        ("K>__KKKK_____", 2, False),
    ],
)
def test_reading_a_row(text: str, start: int | None, valid: bool) -> None:
    reading = read_letters(text, length=13, target=4)
    assert (reading.start, reading.valid) == (start, valid)


def test_every_true_row_is_valid_and_its_start_is_nearly_always_found() -> None:
    task = make_task("letters", {})
    examples = list(task.examples(0, 0, 2000))
    readings = [read_letters(example.text) for example in examples]
    assert all(reading.valid for reading in readings)
    assert np.mean([r.start == e.factors["position"] for r, e in zip(readings, examples, strict=True)]) > 0.99
    assert all(sorted(r.noise) == e.factors["noise"] for r, e in zip(readings, examples, strict=True))


def test_agreement_counts_pairs() -> None:
    here, there, none = "K>__KKKK_______", "K>____KKKK_____", "K>_____________"
    position, noise = letters_agreement([[here, here, there], [there, none]], FACTS)
    assert (position.within, position.pairs_within) == (pytest.approx(1 / 3), 3)  # the pair without a target is left out
    assert (position.across, position.pairs_across) == (pytest.approx(1 / 3), 3)
    assert (noise.pairs_within, noise.within) == (0, 0.0)
    first, second = "K>_!KKKKK_!____", "K>_!_KKKK______"
    noise = letters_agreement([[first, second], [here]], FACTS)[1]
    assert noise.within == pytest.approx(1 / 2)


def test_other_tasks_and_single_groups_have_none() -> None:
    assert letters_agreement([["K>__KKKK_______"] * 2], FACTS) == []
    assert letters_agreement([["a"], ["b"]], DataFacts("t", None, 257, 8, 8, None, "")) == []


def test_a_ratio_to_nothing() -> None:
    assert Agreement("position", 0.5, 0.0, 4, 4).ratio == math.inf
    assert math.isnan(Agreement("position", 0.0, 0.0, 4, 4).ratio)
    assert Agreement("position", 0.5, 0.25, 4, 4).ratio == 2.0


@pytest.mark.parametrize("kind", ["values", "marks"])
def test_agreement_is_the_mean_over_all_pairs(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against loops over every pair, groups of several sizes, unread values and empty marks."""
    rng = np.random.default_rng(0)
    sizes = (4, 1, 5, 3)
    groups = [rng.integers(-1, 3, size=n) if kind == "values" else (rng.random((n, 6)) < 0.3).astype(np.int64) for n in sizes]

    def compared(a: np.ndarray, b: np.ndarray) -> float | None:
        if kind == "values":
            return None if -1 in (int(a), int(b)) else float(a == b)
        return float((a & b).sum() / (a | b).sum()) if (a | b).any() else None

    within = [compared(group[i], group[j]) for group in groups for i in range(len(group)) for j in range(i)]
    across = [compared(a, b) for i, one in enumerate(groups) for other in groups[:i] for a in one for b in other]
    found = agreement(kind, groups)
    for pairs, share, count in ((within, found.within, found.pairs_within), (across, found.across, found.pairs_across)):
        read = [value for value in pairs if value is not None]
        assert share == pytest.approx(np.mean(read)) and count == len(read)
    monkeypatch.setattr("freetf_cli.evaluation.probe.agreement.ALL_PAIRS", 3)
    assert agreement(kind, groups).within == pytest.approx(found.within)
