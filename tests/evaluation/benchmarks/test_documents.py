"""Data files as documents, from hand-made files, and from the public ones where they are beside the checkout."""

from __future__ import annotations

from pathlib import Path

import pytest

from freetf_cli.errors import InputError
from freetf_cli.evaluation.benchmarks import BENCHMARKS, TASKS, documents
from tests.evaluation.benchmarks.data import write_all

PUBLIC = Path(__file__).resolve().parents[4] / "shared" / "data"
ROWS = {"hellaswag": 10042, "winogrande": 1267, "openbookqa": 500, "boolq": 3270, "piqa": 1838, "arc_easy": 2376, "arc_challenge": 1172}
ROWS |= {"commonsenseqa": 1221, "lambada": 5153, "mmlu": 14042, "gsm8k": 1319, "nq_open": 3610, "triviaqa": 3000}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all(tmp_path_factory.mktemp("data"))


def test_every_benchmark_has_a_task_file_and_a_reader() -> None:
    assert {path.stem for path in TASKS.glob("*.yaml")} == set(BENCHMARKS) == {*documents.READERS, *documents.LONG, "mmlu"}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_documents_have_their_form(data: Path, name: str) -> None:
    fields = {"last_word": {"query", "answer"}, "em": {"query", "answer", "answers"}, "code": {"query", "answer", "before", "after"}}
    fields["number"] = fields["solution"] = fields["em"]
    fields["line"] = fields["last_word"]
    splits = documents.read(name, data)
    assert splits["test"] and all(splits.values())
    for doc in (doc for docs in splits.values() for doc in docs):
        if BENCHMARKS[name].kind in ("choices", "retrieval"):
            assert 0 <= doc["gold"] < len(doc["choices"]) and all(doc["choices"])
            assert isinstance(doc.get("query", doc.get("continuation")), str)
        else:
            assert doc.keys() == fields[BENCHMARKS[name].kind] and doc["query"] and doc["answer"]


def test_what_a_document_says(data: Path) -> None:
    assert documents.read("hellaswag", data)["test"][0] == {
        "query": "Tea: a man pours.",
        "choices": ["flies.", "drinks.", "is a cup.", "sings."],
        "gold": 1,
    }
    assert documents.read("piqa", data)["test"][1] == {"query": "Question: Open door b\nAnswer:", "choices": ["push", "sing"], "gold": 1}
    arc = documents.read("arc_easy", data)["test"]
    assert [(len(doc["choices"]), doc["gold"]) for doc in arc] == [(5, 2), (4, 2), (4, 2)]  # labels A-E and 1-4
    assert documents.read("commonsenseqa", data)["shots"][1] == {
        "query": "Question: Where 1?\nA. choice A\nB. choice B\nC. choice C\nD. choice D\nE. choice E\nAnswer:",
        "choices": ["A", "B", "C", "D", "E"],
        "gold": 1,
    }


def test_questions_with_free_answers(data: Path) -> None:
    shot = documents.read("gsm8k", data)["shots"][3]
    assert shot == {"query": "Question: 3 and 3?\nAnswer:", "answer": "It is 6.\n#### 6", "answers": ["6"]}
    assert documents.read("word_problems", data)["test"][0] == {
        "query": "Question: Al has 2 and 3?\nAnswer:",
        "answer": "2+3 = <<2+3=5>>5.\n#### 5",
        "answers": ["5"],
    }
    assert documents.read("python_lines", data)["test"][1] == {"query": "def f(x):\n    return", "answer": " x + 2"}
    assert documents.read("nq_open", data)["test"][0] == {
        "query": "Question: who is 0?\nAnswer:",
        "answer": "Al",
        "answers": ["Al", "Al B."],
    }
    assert documents.read("triviaqa", data)["test"][0]["answers"] == ["Onion", "Onions"]


def test_mmlu_shows_examples_of_the_questions_subject_and_takes_subjects_in_turn(data: Path) -> None:
    docs = documents.read("mmlu", data, shots=2)["test"]
    assert [doc["subject"] for doc in docs] == ["anatomy", "high_school_physics"] * 2
    query = docs[1]["query"]
    assert query.startswith(
        "The following are multiple choice questions (with answers) about high school physics.\n\nhigh_school_physics dev 0"
    )
    assert (
        "D. d\nAnswer: B\n\n" in query
        and query.count("Answer:") == 3
        and query.endswith("high_school_physics test 0, why?\nA. a\nB. b, too\nC. c\nD. d\nAnswer:")
    )
    assert "anatomy" not in query
    assert documents.read("mmlu", data, shots=0)["test"][0]["query"].count("Answer:") == 1
    with pytest.raises(InputError, match="--fewshot 6: mmlu has 5 examples of anatomy"):
        documents.read("mmlu", data, shots=6)


def test_a_file_may_be_unpacked(data: Path, tmp_path: Path) -> None:
    (tmp_path / "lambada").mkdir()
    (tmp_path / "lambada" / "lambada_openai.jsonl").write_text('{"context": "a", "continuation": "b"}\n', encoding="utf-8")
    assert documents.read("lambada", tmp_path) == {"test": [{"query": "a", "answer": "b"}]}


def test_a_folder_that_is_not_there_and_a_file_without_items_are_named(tmp_path: Path) -> None:
    """Needles need no file, but a mistyped folder must not change what hides them."""
    with pytest.raises(InputError, match="no such folder"):
        documents.read("needles", tmp_path / "absent")
    (tmp_path / "lambada").mkdir()
    (tmp_path / "lambada" / "lambada_test_plain_text.txt").write_text("")
    with pytest.raises(InputError, match="lambada_standard has no items"):
        documents.read("lambada_standard", tmp_path)
    (tmp_path / "haystack").mkdir()
    (tmp_path / "haystack" / "haystack.jsonl").write_text('{"text": "It was noon in the town. The road was long."}\n{"words": 1}\n')
    with pytest.raises(InputError, match="line 2 is not an object with a text"):
        documents.read("needles", tmp_path)


def test_missing_and_damaged_files_are_named(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no file for piqa, .*valid-labels.lst"):
        documents.read("piqa", tmp_path)
    with pytest.raises(InputError, match="--task piqa needs the folder"):
        documents.read("piqa", None)
    for name, file in (
        ("lambada", "lambada_openai.jsonl.gz"),
        ("mmlu", "mmlu_dev_test.tar.gz"),
        ("hellaswag", "hellaswag_val_full.txt.bz2"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_bytes(b"nothing")
        with pytest.raises(InputError, match=f"the file of {name} is not in its form"):
            documents.read(name, tmp_path)


@pytest.mark.skipif(not PUBLIC.is_dir(), reason="the public data sets are not beside the checkout")
@pytest.mark.parametrize("name", ["hellaswag", "winogrande", "piqa", "arc_challenge", "mmlu", "gsm8k", "nq_open", "triviaqa"])
def test_the_public_files(name: str) -> None:
    docs = documents.read(name, PUBLIC)["test"]
    assert len(docs) == ROWS[name] and all(doc.get("answers") or doc["gold"] < len(doc["choices"]) for doc in docs)
