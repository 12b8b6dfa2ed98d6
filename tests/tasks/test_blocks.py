"""blocks: every question has one answer, and readings of generated answers."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from freetf_cli.errors import InputError
from freetf_cli.tasks import make_task
from freetf_cli.tasks.base import PAD


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


@pytest.mark.parametrize(
    "params", [{"valid": 2}, {"valid": 2, "n": 8, "which": "first"}, {"valid": 3, "blocks": 3, "which": "last", "query": 3}], ids=str
)
def test_several_blocks_may_be_right(params: dict[str, object]) -> None:
    """Found by the definition: as many blocks as `valid` says hold the letters, with different answers; the row has any of them."""
    task, valid = make_task("blocks", params), int(str(params["valid"]))
    rows, chosen = task.examples(2, 0, 1024), Counter[int]()
    tokens = task.tokens(2, 0, 1024)
    for row, every in zip(rows, task.alternatives(tokens).transpose(1, 0, 2), strict=True):
        question, _, rest = row.text.partition("#")
        blocks, query = question.split("."), task.params["query"]
        holding = [i for i, block in enumerate(blocks) if set(rest[:query]) <= set(block)]
        answers = [blocks[i][task.answer] for i in holding]
        assert len(holding) == valid == len(set(answers)) and len(set(blocks)) == len(blocks) == task.params["blocks"]
        assert all(len(set(block)) == len(block) == task.params["n"] for block in blocks)
        assert row.factors["block"] == holding[row.factors["choice"]] and rest[query:] == row.factors["answer"]
        chosen[row.factors["choice"]] += 1
        texts = [row.text[: task.question] + answer for answer in answers]
        assert ["".join(task.alphabet[i] for i in one[1:-1]) for one in every] == texts
        readings = [task.read(text) for text in texts]
        assert all(reading.valid for reading in readings) and [reading.factors["choice"] for reading in readings] == list(range(valid))
        assert task.other_prompt(row.factors) not in ("", texts[0][: task.question])
        wrong = task.read(row.text[: task.question] + "." * len(answers[0]))
        assert not wrong.valid and wrong.factors["choice"] is None
    assert all(abs(chosen[place] - 1024 / valid) < 4 * (1024 / valid) ** 0.5 for place in range(valid))
    assert task.floor_bits == task.entropy()["answer_given_question"] == np.log2(valid) and PAD not in tokens


def test_the_letter_of_the_answer_does_not_tell_which_block_was_chosen() -> None:
    """A first letter that the question has is likelier than any other: as likely for the block that was chosen as for the others."""
    task = make_task("blocks", {"valid": 2, "which": "first"})
    hits = np.zeros(2)
    for row in task.examples(0, 0, 4096):
        question, _, rest = row.text.partition("#")
        firsts = [block[0] for block in question.split(".") if set(rest[:2]) <= set(block)]
        for place, first in enumerate((firsts[row.factors["choice"]], firsts[1 - row.factors["choice"]])):
            hits[place] += first in rest[:2]
    assert abs(hits[0] - hits[1]) < 140 and hits.sum() > 2000  # 3 standard deviations; 220 if only the others avoided an equal answer


def test_distractors_differ_from_each_other_also_where_few_can_stand_in_a_row() -> None:
    """300 of the 600 pairs of letters without the one asked for: a repeat would be certain if they were drawn independently."""
    for row in make_task("blocks", {"n": 2, "query": 1, "blocks": 301}).examples(0, 0, 100):
        blocks = sorted(row.text.partition("#")[0].split("."))
        assert all(one != other for one, other in pairwise(blocks)) and len(blocks) == 301


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"valid": 3, "blocks": 2}, "less than valid = 3"),
        ({"valid": 4, "n": 13, "query": 12, "blocks": 9}, ""),
        ({"valid": 5}, "outside 1"),
    ],
)
def test_more_right_answers_than_there_are_blocks(params: dict[str, object], message: str) -> None:
    if message:
        with pytest.raises(InputError, match=message):
            make_task("blocks", params)
    else:
        assert len(make_task("blocks", params).examples(0, 0, 3)) == 3


def test_one_valid_block_is_the_task_as_it_was() -> None:
    plain, named = make_task("blocks", {}), make_task("blocks", {"valid": 1})
    assert [row.text for row in plain.examples(3, 0, 5)] == [row.text for row in named.examples(3, 0, 5)]
    assert plain.factors == () and plain.other_prompt({}) == ""
