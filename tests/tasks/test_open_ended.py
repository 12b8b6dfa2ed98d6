"""siblings, circles, lines and triangles: entropies and numbers of objects by enumeration, and readings of generated rows."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest

from freetf_cli.errors import InputError
from freetf_cli.tasks import make_task

SMALL = {
    "siblings": {"parents": 2, "children": 6},
    "circles": {"nodes": 3, "among": 4},
    "lines": {"nodes": 3, "among": 4},
    "triangles": {"nodes": 5, "density": 0.8},
}
NAMES = list(SMALL)


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_uniform_over_all_valid_texts(name: str) -> None:
    """Every valid text of a small task is enumerated: entropy and objects are exact, and 8,000 rows hit all about equally often."""
    task = make_task(name, SMALL[name])
    words = [word for word in task.alphabet or () if word != "$"]
    texts = [" ".join(row) for row in itertools.product(words, repeat=task.row_tokens - 2)]
    valid = {text for text in texts if task.read(text).valid}
    drawn = Counter(example.text for example in task.examples(0, 0, 8000))
    if name == "triangles":  # a row of the task is `a b b c c a`; other orders of the edges are valid too
        assert set(drawn) == {text for text in valid if text[2::4] == text[4::4] + text[:1]}
    else:
        assert set(drawn) == valid
    assert task.entropy()["sequence"] == pytest.approx(math.log2(len(drawn)))
    assert task.floor_bits == task.entropy()["sequence"]
    expected = 8000 / len(drawn)
    assert sum((times - expected) ** 2 / expected for times in drawn.values()) < len(drawn) + 5 * math.sqrt(2 * len(drawn))
    found = {task.identity(text) for text in texts}
    assert len(found - {None}) == task.objects
    assert {text for text in texts if task.identity(text) is not None} == valid


@pytest.mark.parametrize("name", NAMES)
def test_a_prefix_changes_nothing_else(name: str) -> None:
    plain, seeded = make_task(name, SMALL[name]), make_task(name, {**SMALL[name], "seed_length": 4})
    for one, other in zip(plain.examples(3, 1000, 50), seeded.examples(3, 1000, 50), strict=True):
        prefix, text = other.text[:8], other.text[8:]
        assert (text, other.factors) == (one.text, one.factors)
        assert all(word.isalpha() and len(word) == 1 for word in prefix.split())
        assert seeded.identity(other.text) == plain.identity(one.text)
    assert (plain.loss_start, seeded.loss_start, seeded.row_tokens) == (1, 5, plain.row_tokens + 4)
    assert plain.prompt(0, 3) == "" and len(seeded.prompt(0, 3).split(" ")) == 4
    prompts = {seeded.prompt(seed, index) for seed in range(2) for index in range(500)}
    assert len(prompts) > 990  # 26⁴ strings


def test_the_published_sizes() -> None:
    siblings, circles, lines = (make_task(name, {}) for name in ("siblings", "circles", "lines"))
    assert (siblings.objects, siblings.row_tokens - 2) == (5 * math.comb(500, 2), 3)
    assert (circles.objects, circles.row_tokens - 2) == (math.perm(15, 9) // 9, 18)
    assert (lines.objects, lines.row_tokens - 2) == (math.perm(15, 9), 16)
    assert siblings.entropy()["parent"] == pytest.approx(math.log2(5))


def test_siblings_in_either_order() -> None:
    last, first = make_task("siblings", {}), make_task("siblings", {"order": "first"})
    assert (last.read("499 3 p0").valid, last.read("499 500 p0").valid, last.read("3 3 p0").valid) == (True, False, False)
    assert last.read("499 3 p1").factors == {"parent": "p1"} and not last.read("499 3 p1").valid
    assert not any(last.read(text).valid for text in ("", "3 4", "p0 3 4", "3 p0 p0", "3 4 p0 p0", "3 $ p0"))
    assert first.read("p0 499 3").valid and not first.read("499 3 p0").valid
    assert last.identity("499 3 p0") == last.identity("3 499 p0") == first.identity("p0 3 499") == (3, 499)


def test_circles_and_lines() -> None:
    circle, line = make_task("circles", {"nodes": 4}), make_task("lines", {"nodes": 4})
    assert circle.identity("9 2 5 9 2 7 7 5") == circle.identity("7 5 2 7 5 9 9 2") == (2, 7, 5, 9)
    assert circle.identity("9 2 5 9 2 7 7 5") != circle.identity("2 9 9 5 7 2 5 7"), "a circle has a direction"
    assert line.identity("5 9 9 2 2 7") == line.identity("2 7 5 9 9 2") == (5, 9, 2, 7)
    two_circles, branch, short = "1 2 2 1 3 4 4 3", "1 2 2 3 3 1 1 4", "1 2 2 3 3 1"
    assert not any(circle.read(text).valid for text in (two_circles, branch, short, "", "1 2 2 3 3 4 4 $"))
    assert not any(line.read(text).valid for text in ("1 2 2 3 3 1", "1 2 1 3 3 4", "1 2 3 4 4 5", "1 2 2 3", ""))
    assert circle.read("9 2 5 9 2 7 7 5").factors == {"first": 9, "nodes": [2, 5, 7, 9]}


def test_triangles_of_a_fixed_graph() -> None:
    task = make_task("triangles", {})
    assert (int(task.upper.sum()), task.objects) == (8190, 43559)  # type: ignore[attr-defined]
    a, b, c = task.triangles[7].tolist()  # type: ignore[attr-defined]
    assert task.identity(f"{a} {b} {b} {c} {c} {a}") == task.identity(f"{c} {a} {c} {b} {a} {b}") == (a, b, c)
    other = next(node for node in range(256) if node not in (a, b, c) and not task.upper[min(a, node), max(a, node)])  # type: ignore[attr-defined]
    broken = (f"{a} {b} {b} {a} {c} {a}", f"{a} {b} {b} {other} {other} {a}", f"{a} {b} {b} {c}", f"{a} {a} {b} {c} {c} {a}")
    assert not any(task.read(text).valid for text in broken)


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("siblings", {"children": 2501}, "equally many"),
        ("siblings", {"children": 5}, "two or more"),
        ("circles", {"nodes": 16}, "more than among = 15"),
        ("triangles", {"density": 0}, "no triangle"),
    ],
)
def test_impossible_sizes(name: str, params: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_task(name, params)
