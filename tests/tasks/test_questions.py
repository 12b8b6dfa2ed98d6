"""pathstar and countdown: rows against a literal solver, and readings of right and wrong answers."""

from __future__ import annotations

from collections import Counter

import pytest

from freetf_cli.errors import InputError
from freetf_cli.streams import stream_seed
from freetf_cli.tasks import make_task


def paths(text: str, start: str) -> list[list[str]]:
    """All maximal paths from a node, by following the edges of a question."""
    edges = [edge.split(" ") for edge in text.partition(" /")[0].split(" | ")]
    follows = [b for a, b in edges if a == start]
    return [[start, *rest] for b in follows for rest in paths(text, b)] or [[start]]


@pytest.mark.parametrize(("degree", "length"), [(2, 5), (5, 5), (3, 2)])
def test_path_star_graphs(degree: int, length: int) -> None:
    task = make_task("pathstar", {"degree": degree, "length": length})
    arms: Counter[int] = Counter()
    for example in task.examples(1, 0, 300):
        question, _, answer = example.text.partition(" = ")
        start, goal = question.split(" ")[-2:]
        found = paths(question, start)
        assert len(found) == degree and all(len(path) == length for path in found)
        assert len({node for path in found for node in path}) == 1 + degree * (length - 1)
        (right,) = [path for path in found if path[-1] == goal]
        assert answer.split(" ") == right
        assert example.factors["arm"] == sorted(int(path[1]) for path in found).index(int(right[1]))
        arms[example.factors["arm"]] += 1
        for path in found:
            read = task.read(f"{question} = {' '.join(path)}")
            assert (read.valid, read.factors["arm"]) == (path == right, sorted(int(one[1]) for one in found).index(int(path[1])))
    assert len(arms) == degree and max(arms.values()) < 2 * 300 / degree
    assert len(task.prompt(0, 1).split(" ")) == task.loss_start - 1 == 3 * degree * (length - 1) + 3


def test_a_reversed_path_star() -> None:
    forward, reverse = make_task("pathstar", {}), make_task("pathstar", {"order": "reversed"})
    for example in reverse.examples(0, 0, 20):
        question, _, answer = example.text.partition(" = ")
        turned = f"{question} = {' '.join(answer.split(' ')[::-1])}"
        assert forward.read(turned) == reverse.read(example.text) and reverse.read(example.text).valid
        assert not reverse.read(turned).valid


def test_unreadable_answers_of_a_path_star() -> None:
    task = make_task("pathstar", {"degree": 2, "length": 3})
    question = "28 29 | 45 37 | 0 45 | 0 28 / 0 37 ="
    assert task.read(f"{question} 0 45 37").valid
    for answer in ("0 45", "0 45 37 37", "0 | 37", "45 37", "0 1 37", ""):
        assert not task.read(f"{question} {answer}".strip()).valid
    assert task.read(f"{question} 0 1 37").factors == {"arm": None}
    assert not task.read("28 29 | 45 37").valid


@pytest.mark.parametrize("numbers", [2, 3, 5])
def test_countdown_rows_are_right_by_python(numbers: int) -> None:
    task = make_task("countdown", {"numbers": numbers})
    for example in task.examples(2, 0, 300):
        question, _, answer = example.text.partition(" : ")
        *given, target = map(int, question.split(" "))
        for step in answer.split(" , "):
            a, operator, b, _, result = step.split(" ")
            assert eval(f"{a} {operator} {b}") == int(result) and 1 <= int(result) <= 100
            given.remove(int(a))
            given.remove(int(b))
            given.append(int(result))
        assert given == [target] and 10 <= target <= 100
        assert task.read(example.text).valid
    assert len(task.prompt(0, 0).split(" ")) == task.loss_start - 1


@pytest.mark.parametrize(
    ("answer", "valid"),
    [
        ("5 + 3 = 8 , 8 * 2 = 16", True),
        ("3 + 5 = 8 , 2 * 8 = 16", True),
        ("3 * 5 = 15 , 15 + 2 = 17", False),  # misses the target
        ("5 + 3 = 9 , 9 + 2 = 16", False),  # two mistakes
        ("5 + 5 = 10 , 10 + 2 = 16", False),  # a number that is not left
        ("8 * 2 = 16", False),
        ("5 + 3 = 8 , 8 * 2 = 16 , 16 + 1 = 17", False),
        ("5 + 3 = 8 8 * 2 = 16", False),
        ("", False),
    ],
)
def test_countdown_answers(answer: str, valid: bool) -> None:
    task = make_task("countdown", {"numbers": 3})
    assert task.read(f"5 2 3 16 : {answer}".strip()).valid is valid


def test_quotients_are_whole() -> None:
    task = make_task("countdown", {"numbers": 2})
    assert task.read("30 3 10 : 30 / 3 = 10").valid
    assert not task.read("3 30 10 : 3 / 30 = 10").valid and not task.read("31 3 10 : 31 / 3 = 10").valid


def test_other_prompts_differ_in_the_factor() -> None:
    for name, factors in (("pathstar", {"arm": 1}), ("countdown", {"operator": "-"})):
        task = make_task(name, {})
        prompt = task.other_prompt(factors)
        ((name_, value),) = factors.items()
        (example,) = [one for one in task.examples(stream_seed(0, "prompt"), 0, 200) if one.text.startswith(prompt)]
        assert example.factors[name_] != value


def test_a_star_needs_enough_nodes() -> None:
    with pytest.raises(InputError, match="need more than nodes = 20"):
        make_task("pathstar", {"degree": 5, "nodes": 20})
