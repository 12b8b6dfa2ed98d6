"""Data folders from text and tasks: exact proportions, prefixes, and BPE trained on the train split alone."""

from __future__ import annotations

import io
import json
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import tokenizers as library

from freetf_cli.data.dataset import Dataset
from freetf_cli.data.prepare import prepare_text, task_origin, task_tokenizer, write_task
from freetf_cli.data.splits import SplitAssigner, parse_split
from freetf_cli.data.writer import DatasetWriter
from freetf_cli.errors import FreetfError, InputError
from freetf_cli.tasks import make_task, task_names

EXCERPTS = Path(__file__).resolve().parent.parent / "excerpts"


def decoded(data: Dataset, name: str) -> list[str]:
    split = data.split(name)
    return [data.tokenizer.decode(split.row(i)) for i in range(len(split))]


# --- tasks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", task_names())
def test_task_folders(name: str, tmp_path: Path) -> None:
    task = make_task(name, {})
    summary = write_task(task, tmp_path / "d", count=100, seed=5)
    data = Dataset.open(tmp_path / "d")
    assert {split: facts["documents"] for split, facts in summary.splits.items()} == {"train": 90, "val": 10}
    about = data.manifest
    assert (about.task, about.params, about.seed, about.loss_start) == (name, task.params, 5, task.loss_start)
    assert (about.floor_bits, about.entropy) == (task.floor_bits, task.entropy())
    rows = {split: list(data.split(split).records()) for split in ("train", "val")}
    assert all([record["text"] for record in rows[split]] == decoded(data, split) for split in rows)
    drawn = [{"text": example.text, "factors": example.factors} for example in task.examples(5, 0, 100)]
    assert sorted(map(json.dumps, rows["train"] + rows["val"])) == sorted(map(json.dumps, drawn))


def test_a_smaller_count_is_a_prefix_of_each_split(tmp_path: Path) -> None:
    for count in (37, 100):
        write_task(make_task("coins", {}), tmp_path / str(count), count=count)
    small, large = (Dataset.open(tmp_path / str(count)) for count in (37, 100))
    for name in ("train", "val"):
        few = list(small.split(name).records())
        assert few and few == list(large.split(name).records())[: len(few)]


def test_numbers_of_rows(tmp_path: Path) -> None:
    summary = write_task(make_task("coins", {}), tmp_path / "d", count=107, split=parse_split("train=100,val=7", 107))
    assert {name: split["documents"] for name, split in summary.splits.items()} == {"train": 100, "val": 7}


def test_too_few_rows_for_a_split_are_noted(tmp_path: Path) -> None:
    summary = write_task(make_task("coins", {}), tmp_path / "d", count=1)
    assert sum(split["documents"] for split in summary.splits.values()) == 1 and "got none of 1 rows" in summary.notes[0]


# --- text ------------------------------------------------------------------------------------------------------------


def test_a_labelled_folder(tmp_path: Path) -> None:
    summary = prepare_text([EXCERPTS / "movie_reviews"], tmp_path / "d", split={"train": 0.75, "val": 0.25})
    data = Dataset.open(tmp_path / "d")
    assert summary.labels == {"neg": 4, "pos": 4} and summary.tokenizer == "bytes"
    assert data.split("val").facts.labels == {"neg": 1, "pos": 1}, "labels stay balanced though the input is sorted"
    for name in ("train", "val"):
        for record, text in zip(data.split(name).records(), decoded(data, name), strict=True):
            assert text == (EXCERPTS / record["source"]).read_text(encoding="utf-8")
            assert record["factors"] == {"label": record["source"].split("/")[1]}


def test_one_document_is_cut_so_that_no_split_stays_empty(tmp_path: Path) -> None:
    text = (EXCERPTS / "shakespeare.txt").read_text()
    for seed in range(6):  # whichever split the document would have gone to
        out = tmp_path / str(seed)
        summary = prepare_text([EXCERPTS / "shakespeare.txt"], out, seed=seed)
        data = Dataset.open(out)
        (train,), (val,) = decoded(data, "train"), decoded(data, "val")
        assert train + val == text and len(val) == pytest.approx(len(text) / 10, abs=1)
        assert summary.notes == ["shakespeare.txt: too few documents for every split, so it is cut into train, val"]


def test_a_text_too_short_to_cut(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(InputError, match=r"too short to give each split a part: 'val' is 0\.1 of 1 char"):
        prepare_text([tmp_path / "a.txt"], tmp_path / "d")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt"]


@pytest.mark.parametrize("raw", [b"caf\xe9", b"a\0b"])
def test_bad_text_leaves_nothing_behind(raw: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(raw)
    with pytest.raises(InputError, match=r"a\.txt"):
        prepare_text([EXCERPTS / "shakespeare.txt", tmp_path / "a.txt"], tmp_path / "d")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt"]


def test_bpe_sees_the_train_split_only(tmp_path: Path) -> None:
    """A word that is frequent in held-out documents only gets no token of its own."""
    folder = tmp_path / "in"
    folder.mkdir()
    assigner = SplitAssigner({"train": 0.9, "val": 0.1}, seed=0)
    for i in range(40):
        word = "quixotry " if assigner.split(i) == "val" else "common words "
        (folder / f"{i:03d}.txt").write_text(word * 50)
    summary = prepare_text([folder], tmp_path / "d", tokenizer="bpe:300")
    tokenizer = Dataset.open(tmp_path / "d").tokenizer
    assert len(tokenizer.encode("common")) == 1 and len(tokenizer.encode("quixotry")) >= 7
    assert summary.vocabulary == tokenizer.vocab_size <= 300 and summary.splits["val"]["documents"] == 4


def test_standard_input_even_where_it_is_read_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = (EXCERPTS / "shakespeare.txt").read_bytes()
    for tokenizer in ("bytes", "bpe:400"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
        out = tmp_path / tokenizer.replace(":", "")
        seen: list[tuple[Any, ...]] = []
        prepare_text(["-"], out, tokenizer=tokenizer, progress=lambda *said: seen.append(said))  # noqa: B023
        assert len(seen) == (1 if tokenizer == "bytes" else 3) and (tokenizer == "bytes" or "BPE" in seen[1][1])
        data = Dataset.open(out)
        assert decoded(data, "train")[0] + decoded(data, "val")[0] == raw.decode()
        assert next(data.split("train").records())["source"] == "stdin"


def test_copies_on_both_sides_of_a_split_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(f"text {i % 20}" for i in range(40)) + "\nonly one")
    summary = prepare_text([tmp_path / "a.txt"], tmp_path / "d", document_separator="\n", split={"train": 0.75, "val": 0.25})
    train, val = (decoded(Dataset.open(tmp_path / "d"), name) for name in ("train", "val"))
    copies = sum(text in train for text in val)
    assert copies > 0 and summary.notes == [f"{copies} of {len(val)} documents of val are exact copies of documents in train"]


def test_files_that_are_whole_classes_are_noted(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "polarity.zip", "w") as archive:
        for name in ("README.txt", "neg.txt", "pos.txt"):
            archive.writestr(name, f"{name} one\n{name} two\n" * 20)
    for seed in range(4):  # whichever file is held out, or cut
        notes = prepare_text([tmp_path / "polarity.zip"], tmp_path / str(seed), seed=seed).notes
        assert any(
            "it is all of val, as each file is one document; if each line is one, give --document-separator" in line for line in notes
        )
    notes = prepare_text([tmp_path / "polarity.zip"], tmp_path / "lines", document_separator="\n").notes
    assert not any("each file" in line for line in notes)


def test_a_file_that_is_given_twice_is_noted(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a text of its own")
    (tmp_path / "b.txt").symlink_to("a.txt")
    summary = prepare_text([tmp_path / "a.txt", tmp_path / "b.txt"], tmp_path / "d", split={"train": 1})
    assert summary.notes == [f"{(tmp_path / 'a.txt').resolve()}: it is given more than once, and read as often"]


def test_text_that_spells_a_separator_is_noted(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("story 1\n<|endoftext|>\nstory 2\n")
    summary = prepare_text([tmp_path / "a.txt"], tmp_path / "d", split={"train": 1})
    assert summary.notes == ["a.txt: <|endoftext|> is read as text; --document-separator '<|endoftext|>' splits there"]


def test_losses_of_a_tokenizer_are_noted(tmp_path: Path) -> None:
    words = library.Tokenizer(library.models.WordLevel({"the": 0, "cat": 1, "<s>": 2}))
    words.pre_tokenizer = library.pre_tokenizers.WhitespaceSplit()
    words.add_special_tokens(["<s>"])
    words.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "a.txt").write_text("the\ncat\n\nthe <s> cat\n\ncat the")
    notes = prepare_text([tmp_path / "a.txt"], tmp_path / "d", tokenizer=str(tmp_path / "tokenizer.json"), document_separator="\n\n").notes
    assert "the tokenizer has no <|endoftext|>" in notes[0]
    assert notes[1:] == [
        r"the tokenizer drops or changes 1 character, most often '\n' (1)",
        "the text spells 1 control token of the tokenizer: <s> (1)",
    ]


def test_a_tokenizer_without_the_separator_is_noted_and_may_name_another(tmp_path: Path) -> None:
    words = library.Tokenizer(library.models.WordLevel({"the": 0, "cat": 1}))
    words.pre_tokenizer = library.pre_tokenizers.WhitespaceSplit()
    words.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>"])
    words.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "a.txt").write_text("the\ncat\ncat the")
    options = {"tokenizer": str(tmp_path / "tokenizer.json"), "document_separator": "\n", "split": {"train": 1.0}}
    (note,) = prepare_text([tmp_path / "a.txt"], tmp_path / "joined", **options).notes  # type: ignore[arg-type]
    assert note.endswith("--separator-token names a special token to use, such as <|end_of_text|>")
    assert not prepare_text([tmp_path / "a.txt"], tmp_path / "apart", separator_token="<|end_of_text|>", **options).notes  # type: ignore[arg-type]
    joined, apart = (Dataset.open(tmp_path / name) for name in ("joined", "apart"))
    assert (joined.tokenizer.separator, joined.split("train").slice(0, 9).tolist()) == (None, [0, 1, 1, 0])
    assert (apart.tokenizer.separator, apart.split("train").slice(0, 9).tolist()) == (3, [3, 0, 3, 1, 3, 1, 0, 3])


def test_what_a_killed_process_left_is_removed_but_not_what_another_writes(tmp_path: Path) -> None:
    left = tmp_path / ".d.tmp" / "train"
    left.mkdir(parents=True)
    (left / "tokens-00000.bin").write_bytes(b"left")
    task = make_task("coins", {})
    with DatasetWriter(tmp_path / "d", task_tokenizer(task), task_origin(task, 0)) as writer:
        writer.add("train", "01" * 32, {"factors": {}})
        with pytest.raises(FreetfError, match="another process is writing it"):
            write_task(task, tmp_path / "d", count=10)
    assert [path.name for path in tmp_path.iterdir()] == ["d"]
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == ["manifest.json", "tokenizer.json", "train"]
    assert decoded(Dataset.open(tmp_path / "d"), "train") == ["01" * 32]


def test_an_error_names_standard_input_not_its_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one\ntwo \xff")))
    with pytest.raises(InputError, match="not UTF-8 text, standard input, line 2, byte 8"):
        prepare_text(["-"], tmp_path / "d", tokenizer="bpe:300")

    def full(*streams: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(FreetfError, match=r"cannot be written: No space left on device, .*; set TMPDIR"):
        prepare_text(["-"], tmp_path / "d", tokenizer="bpe:300")


def test_a_tokenizer_from_elsewhere(tmp_path: Path) -> None:
    prepare_text([EXCERPTS / "shakespeare.txt"], tmp_path / "a", tokenizer="bpe:300")
    prepare_text([EXCERPTS / "classics.jsonl"], tmp_path / "b", tokenizer=str(tmp_path / "a"), field="text")
    a, b = (Dataset.open(tmp_path / name) for name in "ab")
    assert a.tokenizer.sha256 == b.tokenizer.sha256 and len(b.split("train")) + len(b.split("val")) in (6, 7)
    for name, message in (("byte", "no tokenizer 'byte'"), ("bpe:many", "whole number"), ("bpe:10", "257 or more")):
        with pytest.raises(InputError, match=message):
            prepare_text([EXCERPTS / "shakespeare.txt"], tmp_path / "c", tokenizer=name)


def test_a_document_separator_makes_documents(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("<|endoftext|>\n".join(f"story {i}\n" for i in range(20)))
    seen: list[int] = []
    summary = prepare_text([tmp_path / "a.txt"], tmp_path / "d", document_separator="<|endoftext|>", progress=seen.append)
    assert sum(split["documents"] for split in summary.splits.values()) == 20 == sum(seen)
