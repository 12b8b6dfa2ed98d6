"""needles: the place and the answer of the fact that is asked for, read by an own parser, and rows that fit their length."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from freetf_cli.errors import InputError
from freetf_cli.tasks import make_task
from freetf_cli.tasks.needles import DEPTHS, NEEDLES

GOLDEN = (
    "The writer read at home. The magic number of Quito is 9728. The carpenter laughed by the river. The doctor rested at home. The doctor "
    "rested near the mill. The doctor waited by the river. The magic number of Osaka is 7094. The baker wrote on the bridge. The painter "
    "walked at the market.\nQuestion: What is the magic number of Osaka?\nAnswer: The magic number of Osaka is 7094"
)  # row 0 of seed 0: if it changes, runs are no longer reproducible


def test_golden_row() -> None:
    assert make_task("needles", {"length": 400, "needles": 2}).examples(0, 0, 1)[0].text == GOLDEN


@pytest.mark.parametrize("params", [{}, {"needles": 3, "depth": 40, "length": 600}, {"needles": 1, "depth": 100, "length": 200}])
def test_the_fact_stands_at_its_depth(params: dict[str, int]) -> None:
    task = make_task("needles", params)
    for row in task.examples(1, 0, 200):
        text, _, question = row.text.partition("\n")
        sentences = [f"{one}." for one in text.removesuffix(".").split(". ")]
        facts = {index: re.findall(r"[A-Z]\w+|[0-9]+", one)[1:] for index, one in enumerate(sentences) if "magic" in one}
        city, answer = row.factors["city"], str(row.factors["answer"])
        assert question == f"Question: What is the magic number of {city}?\nAnswer: The magic number of {city} is {answer}"
        (place,) = (index for index, (name, number) in facts.items() if name == city and number == answer)
        assert len(facts) == row.factors["needles"] == len({name for name, _ in facts.values()})
        before = sum(index < place for index in range(len(sentences)) if index not in facts)
        assert before == round(row.factors["depth"] / 100 * (len(sentences) - len(facts)))
        assert task.params["length"] - 60 < len(row.text) + 1 <= task.params["length"]  # no other sentence has 60 characters


def test_rows_cover_the_grid() -> None:
    rows = make_task("needles", {}).examples(2, 0, 1000)
    cells = Counter((row.factors["needles"], row.factors["depth"]) for row in rows)
    assert set(cells) == {(count, depth) for count in NEEDLES for depth in DEPTHS} and min(cells.values()) > 30
    assert len({row.text for row in rows}) == 1000


def test_a_wrong_answer_is_not_valid() -> None:
    task = make_task("needles", {"length": 400, "needles": 2})
    assert task.read(GOLDEN).valid and task.read(GOLDEN).factors == {"needles": 2, "city": "Osaka", "answer": 7094}
    assert not task.read(GOLDEN[:-4] + "9728").valid, "the number of the other city"
    assert not task.read(GOLDEN[:-1]).valid and not task.read(GOLDEN.partition("\n")[0]).valid, "no whole answer"
    assert not task.read(GOLDEN.replace("The magic number of Osaka is 7094. ", "", 1)).valid, "a fact that is not in the text"
    assert task.prompt(0, 0) + " 7094" == GOLDEN


def test_bad_prompt_and_length() -> None:
    task = make_task("needles", {"length": 400, "needles": 2})
    task.check_prompt(task.prompt(0, 3))
    task.check_prompt("The b")
    with pytest.raises(InputError, match="begins with 'The '"):
        task.check_prompt("K>")
    with pytest.raises(InputError, match=r"length = 200 has no room for 6 facts; choose \d+ or more") as error:
        make_task("needles", {"length": 200})
    least = int(re.findall(r"choose (\d+)", str(error.value))[0])
    make_task("needles", {"length": least}).examples(0, 0, 1024)
    with pytest.raises(InputError, match="no room"):
        make_task("needles", {"length": least - 1})
