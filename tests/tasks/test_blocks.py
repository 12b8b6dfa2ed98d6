"""blocks: every question has one answer, and readings of generated answers."""

from __future__ import annotations

import pytest

from freetf_cli.tasks import make_task


def test_golden_row() -> None:
    row = make_task("blocks", {}).examples(7, 0, 1)[0]
    assert row.text.startswith("mlpcr.mxghw.fncsh.") and row.text.endswith("qcone#wddnjwm")
    assert row.factors == {"answer": "dnjwm", "block": 10}


@pytest.mark.parametrize(
    ("params", "count", "answer"),
    [
        ({}, 52, slice(0, 5)),
        ({"n": 8}, 34, slice(0, 8)),
        ({"n": 5, "which": "first"}, 52, slice(0, 1)),
        ({"n": 8, "which": "last", "query": 3}, 34, slice(7, 8)),
        ({"n": 6, "query": 1, "blocks": 7}, 7, slice(0, 6)),
        ({"n": 2, "query": 1, "blocks": 301}, 301, slice(0, 2)),  # of 600 without the question's letter
    ],
)
def test_blocks_have_one_answer(params: dict[str, object], count: int, answer: slice) -> None:
    task = make_task("blocks", params)
    assert task.params["blocks"] == count
    for row in task.examples(2, 0, 200):
        question, _, rest = row.text.partition("#")
        blocks, query = question.split("."), task.params["query"]
        holding = [i for i, block in enumerate(blocks) if set(rest[:query]) <= set(block)]
        assert len(set(blocks)) == len(blocks) == count and all(len(set(block)) == len(block) == task.params["n"] for block in blocks)
        assert len(set(rest[:query])) == query and holding == [row.factors["block"]]
        assert rest[query:] == row.factors["answer"] == blocks[holding[0]][answer]
        assert 1 + len(question) + 1 + query == task.loss_start
    assert task.prompt(0, 3).endswith(task.prompt(0, 3)[-task.params["query"] :]) and len(task.prompt(0, 3)) == task.loss_start - 1


def test_a_row_of_blocks_is_as_long_as_the_released_one() -> None:
    assert make_task("blocks", {}).row_tokens == 319 + 2
    assert make_task("blocks", make_task("blocks", {"n": 8}).params).params == make_task("blocks", {"n": 8}).params


@pytest.mark.parametrize(
    ("text", "valid", "role"),
    [
        ("ctrwn.yzefm.nsrdx.msglk#mkmsglk", True, "target"),
        ("ctrwn.yzefm.nsrdx.msglk#mkmsglx", False, "invalid"),
        ("ctrwn.yzefm.nsrdx.msglk#nrmsglk", False, "invalid"),  # two blocks hold the letters
        ("ctrwn.yzefm.nsrdx.msgll#mgmsgll", False, "invalid"),  # no block of distinct letters
        ("ctrwn.yzefmcnsrdx.msglk#mkmsglk", False, "invalid"),
        ("ctrwn.yzefm.ctrwn.msglk#mkmsglk", False, "invalid"),  # the same block twice
    ],
)
def test_reading_an_answer(text: str, valid: bool, role: str) -> None:
    task = make_task("blocks", {"blocks": 4})
    reading = task.read(text)
    assert reading.valid == valid and reading.factors["answer"] == text[-5:]
    assert task.spans(text) == [(text[:-5], "plain"), (text[-5:], role)]
    assert task.factors == ()  # the question decides the answer: there is nothing for Z to encode
