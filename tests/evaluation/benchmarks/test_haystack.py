"""Long prompts: needles stand where they should, stories keep their order, and every prompt fits its length."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from freetf_cli.errors import InputError
from freetf_cli.evaluation.benchmarks import BENCHMARKS, documents, metrics
from freetf_cli.evaluation.benchmarks.haystack import ITEMS, LENGTHS, Room, read_babi
from freetf_cli.tasks.needles import DEPTHS, NEEDLES, generated_haystack, hidden
from tests.evaluation.benchmarks.data import write_all

PUBLIC = Path(__file__).resolve().parents[4] / "shared" / "data"
WORDS = Room(lambda text: len(text.split()), 2048)  # a tokenizer that has a token for each word
NEEDLE = re.compile(r"The magic number of (\w+) is (\d{4})\.")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all(tmp_path_factory.mktemp("data"))


def items(name: str, data: Path, room: Room) -> list[dict[str, Any]]:
    return documents.read(name, data, room=room)["test"]


@pytest.mark.parametrize("haystack", ["given", "generated"])
@pytest.mark.parametrize("room", [WORDS, Room(context=1024)], ids=["words", "bytes"])
def test_needles_stand_where_their_depth_says(data: Path, tmp_path: Path, room: Room, haystack: str) -> None:
    found = items("needles", data if haystack == "given" else tmp_path, room)
    for doc in found:
        needles = dict(NEEDLE.findall(doc["query"]))
        asked = re.findall(r"What is the magic number of (\w+)\?", doc["query"])[0]
        assert len(needles) == doc["needles"] == len(doc["choices"]) and sorted(needles.values()) == doc["choices"]
        assert doc["choices"][doc["gold"]] == needles[asked] and doc["query"].endswith(f"The magic number of {asked} is")
        assert (doc["haystack"], doc["query"].count(" noon ") > 0) == (haystack, haystack == "given")
        text = doc["query"].partition("\nQuestion:")[0]
        filler = [NEEDLE.sub("", part).split(".") for part in text.split(f"The magic number of {asked} is {needles[asked]}.")]
        before, after = (sum(bool(one.strip()) for one in part) for part in filler)
        assert before == round(doc["depth"] / 100 * (before + after))
        took = room.tokens(doc["query"] + f" {doc['choices'][0]}") + 1
        assert doc["length"] - 60 < took <= doc["length"]  # no sentence here has 60 characters
    lengths = [length for length in LENGTHS if length <= room.context]  # type: ignore[operator]
    cells = Counter((doc["needles"], doc["depth"], doc["length"]) for doc in found)
    assert set(cells) == {(n, d, length) for n in NEEDLES for d in DEPTHS for length in lengths} and set(cells.values()) == {ITEMS}
    assert len({(doc["needles"], doc["depth"], doc["length"]) for doc in found[: len(cells)]}) == len(cells)  # --limit covers the grid


def test_a_short_context_has_a_length_of_its_own_and_too_short_a_one_is_an_error(data: Path) -> None:
    assert {(doc["needles"], doc["length"]) for doc in items("needles", data, Room(context=200))} == {(2, 200)}
    with pytest.raises(InputError, match="no item fits the model's context of 40 tokens"):
        items("needles", data, Room(context=40))


def test_a_prompt_fits_also_where_its_sentences_cost_more_together_than_alone(data: Path) -> None:
    room = Room(lambda text: len(text.split()) + text.count(". "), 600)
    for doc in items("needles", data, room):
        took = room.tokens(doc["query"] + f" {doc['choices'][0]}") + 1
        assert doc["length"] - 20 < took <= doc["length"] == 512


def test_items_are_the_same_every_time_and_their_answers_are_balanced(data: Path) -> None:
    first, again = (items("needles", data, Room(context=512)) for _ in range(2))
    assert first == again
    gold = Counter(doc["gold"] for doc in first if doc["needles"] == 2)
    assert abs(gold[0] - gold[1]) < 4 * (5 * ITEMS) ** 0.5
    assert len({doc["query"] for doc in first}) == len(first)


def test_facts_are_hidden_in_their_order() -> None:
    assert hidden(["a", "b", "c"], ["1", "2", "3"], [0, 2, 2]) == "1 a b 2 3 c"
    assert hidden(["a"], ["1", "2"], [1, 1]) == "a 1 2"
    assert hidden([], ["1", "2"], [0, 0]) == "1 2"


def test_stories_of_babi(data: Path) -> None:
    stories = read_babi(data)
    assert list(stories) == ["qa1", "qa2", "qa3", "qa4", "qa5"] and [len(each) for each in stories.values()] == [4] * 5
    assert stories["qa3"][0] == (["Mary moved to the kitchen.", "John went to the garden."], "Where is Mary?", "kitchen")
    assert stories["qa3"][3] == (
        ["Mary moved to the office.", "John went to the garden.", "Mary ran home."],
        "Where is John?",
        "garden",
    )


def test_babilong_keeps_the_story_and_fills_the_rest(data: Path) -> None:
    room, stories = Room(context=1024), read_babi(data)
    found = items("babilong", data, room)
    for doc in found:
        text, _, asked = doc["query"].partition("\nQuestion: ")
        told = re.findall(r"(?:Mary|John) [\w ]+\.", text)
        rest = re.sub(r"(?:Mary|John) [\w ]+\.", "", text).split()
        assert (told, asked.removesuffix("\nAnswer:"), doc["choices"][doc["gold"]]) in stories[doc["question"]]
        assert (rest == []) == (doc["length"] == 0) and doc["choices"] == ["garden", "kitchen", "office"]
        if doc["length"]:
            assert doc["length"] - 40 < room.tokens(doc["query"] + " kitchen") + 1 <= doc["length"]
    cells = Counter((doc["question"], doc["length"]) for doc in found)
    assert set(cells) == {(f"qa{i}", length) for i in range(1, 6) for length in (0, 512, 1024)} and set(cells.values()) == {4}


def test_babilong_without_text_names_the_file(data: Path, tmp_path: Path) -> None:
    (tmp_path / "babi").symlink_to(data / "babi")
    with pytest.raises(InputError, match="no file for babilong") as error:
        items("babilong", tmp_path, WORDS)
    assert "haystack.jsonl.gz" in str(error.value)
    (tmp_path / "haystack").mkdir()
    (tmp_path / "haystack/haystack.jsonl").write_text('{"text": "Too short."}\n', encoding="utf-8")
    with pytest.raises(InputError, match="the haystack has no sentences"):
        items("babilong", tmp_path, WORDS)


@pytest.mark.skipif(not (PUBLIC / "babi").is_dir(), reason="the public data sets are not here")
def test_the_public_stories() -> None:
    stories = read_babi(PUBLIC)
    assert [len(each) for each in stories.values()] == [1000] * 5
    answers = [len({answer for _, _, answer in each}) for each in stories.values()]
    assert answers == [6, 6, 6, 6, 7]  # chance 1/6, as in arXiv 2504.00927; questions of qa5 ask for a person or a thing


def test_generated_sentences_differ_and_have_no_numbers() -> None:
    sentences = generated_haystack(WORDS.tokens).sentences
    assert len(set(sentences)) == len(sentences) > 1000 and not any(re.search(r"\d|magic", one) for one in sentences)


def test_scores_by_cell() -> None:
    """Right at depth 0 only; greedy decoding is right where the most likely choice is not the question."""
    docs = [
        {"needles": n, "haystack": "given", "depth": d, "length": 512, "choices": ["1"] * n, "gold": 0} for n in (2, 4) for d in (0, 50, 0)
    ]
    answers = [
        [{"loglikelihood": -1.0 - i * (1 if doc["depth"] == 0 else -1), "greedy": True} for i in range(doc["needles"])] for doc in docs
    ]
    scores = [metrics.retrieval(doc, each) for doc, each in zip(docs, answers, strict=True)]
    assert scores[0] == {"acc": 1.0, "em": 1.0} and scores[1] == {"acc": 0.0, "em": 1.0}
    grids = metrics.grids(docs, scores, BENCHMARKS["needles"])
    assert [(one.title, one.rows, one.columns, one.chance) for one in grids] == [
        ("2 needles, given haystack", ["0", "50"], ["512"], [0.5, 0.5]),
        ("4 needles, given haystack", ["0", "50"], ["512"], [0.25, 0.25]),
    ]
    assert [[None if cell is None else cell.value for cell in row] for row in grids[0].scores] == [[1.0], [0.0]]
    table, heat = grids[1].blocks("needles")
    assert json.dumps(heat.shares) == "[[1.0], [0.0]]" and table.rows[1][2] == "25.0 %"  # type: ignore[attr-defined]
    assert metrics.grids(docs, scores, BENCHMARKS["lambada"]) == []


def test_perplexity_is_that_of_the_last_word() -> None:
    answers = [[{"loglikelihood": -log, "greedy": False}] for log in (1.0, 3.0)]
    found = metrics.summarise([{}, {}], [metrics.last_word({}, one) for one in answers], "")
    assert found["nll"].value == 2.0 and found["perplexity"].value == pytest.approx(math.e**2)
    many = metrics.summarise([{}] * 200, [{"acc": 0.0, "nll": float(i % 7)} for i in range(200)], "")
    assert [math.log(end) for end in (many["perplexity"].low, many["perplexity"].high)] == pytest.approx(
        [many["nll"].low, many["nll"].high]
    )
