"""word_problems: answers that an own evaluation of each calculation confirms, and parts that share no problem."""

from __future__ import annotations

import re
from fractions import Fraction

import pytest

from freetf_cli.errors import InputError
from freetf_cli.tasks import make_task
from freetf_cli.tasks.base import Example
from freetf_cli.tasks.word_problems import PARTS, PROBLEMS

GOLDEN = (  # rows 0 and 1,500 of seed 7: if they change, runs are no longer reproducible
    (
        "Question: Clara pays for 12 buttons with a 55 dollar note. Each costs 2 dollars. How many dollars does Clara get back?",
        "Answer: All buttons cost 12*2 = <<12*2=24>>24 dollars.",
        "Clara gets 55-24 = <<55-24=31>>31 dollars back.",
        "#### 31",
    ),
    (
        "Question: Hugo had 82 ribbons, lost 15 on Friday and 5 on Saturday. How many ribbons does Hugo have left?",
        "Answer: After Friday Hugo had 82-15 = <<82-15=67>>67 ribbons.",
        "After Saturday Hugo has 67-5 = <<67-5=62>>62 ribbons left.",
        "#### 62",
    ),
)


def rows(part: str, count: int = 600) -> list[Example]:
    return make_task("word_problems", {"part": part}).examples(7, 0, count)


def test_golden_rows() -> None:
    task = make_task("word_problems", {})
    assert tuple(tuple(task.examples(7, i, 1)[0].text.splitlines()) for i in (0, 1500)) == GOLDEN


@pytest.mark.parametrize("part", PARTS)
def test_every_calculation_is_right_and_the_last_gives_the_answer(part: str) -> None:
    for row in rows(part):
        shown = re.findall(r"([0-9]+)([-+*/])([0-9]+) = <<([^=>]+)=([0-9]+)>>([0-9]+)", row.text)
        assert 1 <= len(shown) <= 2
        question = row.text.partition("\nAnswer:")[0]
        for left, sign, right, inside, result, again in shown:
            one, other = Fraction(left), Fraction(right)
            value = {"+": one + other, "-": one - other, "*": one * other, "/": one / other}[sign]
            assert value == Fraction(result) > 0 and (inside, again) == (f"{left}{sign}{right}", result)
        assert shown[0][0] in question, "the first step begins with a number of the question"
        assert row.text.endswith(f"#### {shown[-1][4]}") and row.factors["answer"] == int(shown[-1][4])
        assert len(row.text) <= 320 and "{" not in row.text and row.text.isascii()


def test_no_problem_of_one_part_is_in_another() -> None:
    numbers = {
        part: {(row.factors["kind"], *re.findall("[0-9]+", row.text.partition("\nAnswer:")[0])) for row in rows(part)} for part in PARTS
    }
    assert not numbers["train"] & numbers["numbers"] and len(numbers["train"]) > 300
    kinds = {part: {row.factors["kind"] for row in rows(part)} for part in PARTS}
    assert kinds["train"] == kinds["numbers"] == {one.kind for one in PROBLEMS if not one.held_out}
    assert kinds["kinds"] == {one.kind for one in PROBLEMS if one.held_out}
    held_out = sum(one.is_held_out({"a": a, "b": b, "c": 3}) for one in PROBLEMS for a in range(20) for b in range(20))
    assert 0.18 < held_out / (400 * len(PROBLEMS)) < 0.22, "a fifth of the numbers"


def test_a_wrong_answer_or_question_is_not_valid() -> None:
    task = make_task("word_problems", {})
    text = task.examples(7, 0, 1)[0].text
    assert task.read(text).valid
    assert not task.read(re.sub("[0-9]+$", lambda found: str(int(found[0]) + 1), text)).valid
    assert not task.read(text.partition("####")[0]).valid, "no answer"
    assert not task.read(text.replace("Question: ", "Question: Now ")).valid
    assert not task.read(rows("kinds", 1)[0].text).valid, "a kind of another part"


def test_bad_prompt_and_part() -> None:
    task = make_task("word_problems", {})
    task.check_prompt(task.prompt(0, 3))
    with pytest.raises(InputError, match="begins with"):
        task.check_prompt("How many?")
    with pytest.raises(InputError, match="did you mean 'kinds'"):
        make_task("word_problems", {"part": "kind"})
