"""Batches: a pure function of (seed, step), every row once an epoch, and no target that should not be one."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tokenizers as library

from freetf_cli.config.recipe import DataConfig
from freetf_cli.data.batches import IGNORE, DataSource, open_data
from freetf_cli.data.dataset import Dataset
from freetf_cli.data.manifest import Origin
from freetf_cli.data.prepare import prepare_text, write_task
from freetf_cli.data.tokenizer import SEPARATOR, characters
from freetf_cli.data.writer import DatasetWriter
from freetf_cli.errors import InputError
from freetf_cli.tasks import make_task

EXCERPTS = Path(__file__).resolve().parent.parent / "excerpts"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_task(make_task("letters", {}), root / "letters", count=70)
    write_task(make_task("reviews", {}), root / "reviews", count=70)
    prepare_text([EXCERPTS / "movie_reviews", EXCERPTS / "shakespeare.txt"], root / "text")
    return root


def source(folders: Path, name: str, seed: int = 0) -> DataSource:
    configs = {
        "letters": (DataConfig(task="letters"), None),
        "letters folder": (DataConfig(dir=str(folders / "letters")), None),
        "reviews": (DataConfig(task="reviews"), None),
        "reviews folder": (DataConfig(dir=str(folders / "reviews")), None),
        "text": (DataConfig(dir=str(folders / "text")), 32),
        "text documents": (DataConfig(dir=str(folders / "text"), rows="documents"), 64),
        "blocks": (DataConfig(task="blocks"), None),
        "circles": (DataConfig(task="circles", train_rows=70), None),
        "pathstar": (DataConfig(task="pathstar", train_rows=1500), None),
    }
    config, context = configs[name]
    return open_data(config, context=context, seed=seed)


NAMES = ["letters", "letters folder", "reviews", "reviews folder", "text", "text documents", "blocks", "circles", "pathstar"]


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_depends_on_seed_and_step_alone(name: str, folders: Path) -> None:
    data = source(folders, name)
    steps = [5, 40, 0, 39, 5]  # forwards, backwards, again, across epochs
    first = {step: data.train_batch(step, 8) for step in steps}
    for step in sorted(set(steps), reverse=True):
        again = source(folders, name).train_batch(step, 8)
        assert (again.inputs == first[step].inputs).all() and (again.targets == first[step].targets).all()
    assert not (source(folders, name, seed=1).train_batch(5, 8).inputs == first[5].inputs).all()
    assert first[5].inputs.shape == first[5].targets.shape == (8, data.context)
    assert first[5].inputs.dtype == first[5].targets.dtype == np.int64


@pytest.mark.parametrize("name", NAMES)
def test_targets_follow_inputs(name: str, folders: Path) -> None:
    data = source(folders, name)
    batch = data.train_batch(0, 16)
    counted = batch.targets[:, :-1] != IGNORE
    assert (batch.targets[:, :-1][counted] == batch.inputs[:, 1:][counted]).all()
    assert (batch.inputs >= 0).all() and (batch.inputs < data.facts.vocabulary).all()
    per_row = (batch.targets != IGNORE).sum(axis=1)
    assert (per_row > 0).all()
    if data.facts.targets is not None:
        assert (per_row == data.facts.targets).all()


@pytest.mark.parametrize("name", ["letters folder", "reviews folder", "text documents", "text", "circles"])
def test_an_epoch_covers_every_row_once(name: str, folders: Path) -> None:
    data = source(folders, name)
    rows = data.rows.size("train") if name != "text" else None
    rows = rows or data.rows._epoch_rows  # type: ignore[attr-defined]
    drawn = [row.tobytes() for step in range(rows) for row in data.train_batch(step, 3).inputs]  # three epochs
    epochs = [Counter(drawn[i * rows : (i + 1) * rows]) for i in range(3)]
    assert drawn[:rows] != drawn[rows : 2 * rows], "each epoch has an order of its own"
    if name == "text":
        assert all(max(epoch.values()) == 1 for epoch in epochs)
    else:
        assert epochs[0] == epochs[1] == epochs[2]
        held = [row.tobytes() for batch in data.held_out("train", rows, 7) for row in batch.inputs]
        assert Counter(held) == epochs[0]


def test_packed_windows_cover_the_stream(folders: Path) -> None:
    data = source(folders, "text")
    stream = Dataset.open(folders / "text").split("train").slice(0, 10**9)
    rows = data.rows._epoch_rows  # type: ignore[attr-defined]
    starts = set()
    for epoch in range(3):
        batch = [data.train_batch(epoch * rows + i, 1) for i in range(rows)]
        windows = sorted((b.inputs[0].tolist() + b.targets[0, -1:].tolist() for b in batch), key=lambda w: find(stream, w))
        start = find(stream, windows[0])
        starts.add(start)
        assert 0 <= start < 32 and len(stream) - (start + rows * 32 + 1) < 2 * 32
        assert all(stream[start + 32 * i : start + 32 * i + 33].tolist() == window for i, window in enumerate(windows))
    assert len(starts) > 1, "each epoch begins at an offset of its own"


def find(stream: np.ndarray, window: list[int]) -> int:
    views = np.lib.stride_tricks.sliding_window_view(stream, len(window))
    return int(np.flatnonzero((views == window).all(axis=1))[0])


def test_a_batch_larger_than_the_data(folders: Path) -> None:
    batch = source(folders, "letters folder").train_batch(0, 63 * 2 + 5)
    assert set(Counter(row.tobytes() for row in batch.inputs).values()) == {2, 3}


def test_padding_is_the_separator_and_has_no_targets(folders: Path) -> None:
    data = source(folders, "reviews folder")
    texts = [record["text"] for record in Dataset.open(folders / "reviews").split("val").records()]
    (batch,) = data.held_out("val", 100, 100)
    for text, inputs, targets in zip(texts, batch.inputs, batch.targets, strict=True):
        end = len(text) + 1
        assert inputs[0] == 256 and bytes(inputs[1:end].tolist()).decode() == text and (inputs[end:] == 256).all()
        assert targets[end - 1] == 256 and (targets[end:] == IGNORE).all() and (targets[:end] != IGNORE).all()


def test_the_question_of_blocks_has_no_targets(folders: Path) -> None:
    data = source(folders, "blocks")
    batch = data.train_batch(0, 4)
    assert (batch.targets[:, :314] == IGNORE).all() and (batch.targets[:, 314:] != IGNORE).all()
    for inputs, targets in zip(batch.inputs, batch.targets, strict=True):
        answer = data.tokenizer.decode(targets[314:])
        question, _, _ = data.tokenizer.decode(inputs).partition("#")
        assert len(answer) == 5 and answer in question.split(".") and targets[-1] == data.tokenizer.separator


@pytest.mark.parametrize("name", NAMES)
def test_held_out_rows_are_always_the_same(name: str, folders: Path) -> None:
    data = source(folders, name)
    first = np.concatenate([batch.inputs for batch in data.held_out("val", 6, 4)])
    data.train_batch(3, 5)
    again = np.concatenate([batch.inputs for batch in source(folders, name).held_out("val", 6, 2)])
    assert (first == again).all() and 0 < len(first) <= 6
    train = {row.tobytes() for row in data.train_batch(0, 63).inputs}
    assert not train & {row.tobytes() for row in first}


def test_fewer_held_out_rows_than_asked_for(folders: Path) -> None:
    sizes = [len(batch.inputs) for batch in source(folders, "letters folder").held_out("val", 512, 4)]
    assert sizes == [4, 3]
    with pytest.raises(InputError, match="did you mean 'val'"):
        list(source(folders, "letters folder").held_out("vall", 1, 1))


def test_facts(folders: Path) -> None:
    letters, folder, text, blocks = (source(folders, name).facts for name in ("letters", "letters folder", "text", "blocks"))
    assert (letters.targets, letters.context, letters.vocabulary, letters.name) == (65, 65, 29, "letters")
    assert round(letters.floor_bits or 0, 3) == 27.412 == round(folder.floor_bits or 0, 3)
    assert folder.sha256 == Dataset.open(folders / "letters").sha256 and len(letters.sha256) == 64
    other = open_data(DataConfig(task="letters", params={"noise": 0.1}), context=None, seed=0).facts
    assert other.sha256 != letters.sha256
    assert (text.targets, text.floor_bits, text.task) == (32, None, None)
    assert (blocks.targets, blocks.floor_bits) == (6, 0.0)
    cropped = open_data(DataConfig(task="letters"), context=20, seed=0).facts
    assert (cropped.targets, cropped.floor_bits) == (20, None), "the floor is that of whole rows"


TEXTS = ["ab abcd AB", "é", "abé  cd", "ab", "𝄞 abcd"] * 4
EVERY_CHARACTER = {c: i for i, c in enumerate("abcdé𝄞")} | {"[UNK]": 6}


def lossy() -> library.Tokenizer:
    """A tokenizer that lower-cases, drops spaces, and has no decoder."""
    inner = library.Tokenizer(library.models.BPE({**EVERY_CHARACTER, "ab": 7, "cd": 8}, [("a", "b"), ("c", "d")]))
    inner.normalizer, inner.pre_tokenizer = library.normalizers.Lowercase(), library.pre_tokenizers.Whitespace()
    inner.add_special_tokens([SEPARATOR])
    return inner


@pytest.mark.parametrize("kind", ["bytes", "bpe:270", "lossy"])
def test_targets_have_the_bytes_of_their_text(kind: str, tmp_path: Path) -> None:
    """Every token but the given one is a target once: together they have the bytes of the text, of each split by itself."""
    (tmp_path / "lossy").write_text(lossy().to_str())
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"t": text}) + "\n" for text in TEXTS))
    tokenizer = str(tmp_path / kind) if kind == "lossy" else kind
    prepare_text([tmp_path / "t.jsonl"], tmp_path / "d", field="t", tokenizer=tokenizer, split={"train": 0.5, "val": 0.5})
    splits = Dataset.open(tmp_path / "d").manifest.splits
    whole, cropped = (open_data(DataConfig(dir=str(tmp_path / "d"), rows="documents"), context=n, seed=0) for n in (20, 2))
    for split in ("train", "val"):
        sizes = [sum(data.target_bytes(split, each.targets).sum() for each in data.held_out(split, 99, 3)) for data in (whole, cropped)]
        assert sizes[0] == pytest.approx(splits[split].bytes) and 0 < sizes[1] < sizes[0]
    packed = open_data(DataConfig(dir=str(tmp_path / "d")), context=1, seed=0)  # windows of one target
    assert sum(packed.target_bytes("val", each.targets).sum() for each in packed.held_out("val", 999, 7)) == pytest.approx(
        splits["val"].bytes
    )
    (few,) = packed.held_out("val", 5, 5)
    assert packed.target_bytes("val", few.targets).tolist() == packed.token_bytes("val")[few.targets[:, 0]].tolist()


def test_rows_of_a_task_have_no_bytes(folders: Path) -> None:
    for name in ("letters", "letters folder", "reviews folder"):
        data = source(folders, name)
        assert not data.target_bytes("val", next(data.held_out("val", 4, 4)).targets).any()


def test_prompts(folders: Path) -> None:
    def prompts(name: str) -> list[str]:
        return [source(folders, name).prompt(0, index) for index in range(3)]

    assert prompts("letters") == prompts("letters folder") == ["K>", "L>", "M>"]
    assert prompts("text") == prompts("reviews") == ["", "", ""]
    assert all(prompt[-3] == "#" for prompt in prompts("blocks"))


@pytest.mark.parametrize(
    ("name", "rows", "context", "message"),
    [
        ("text", "auto", 100_000, "has [0-9]+ tokens: .*model.context = 100000"),
        ("text", "auto", None, "model.context is not set"),
        ("letters", "auto", 66, "model.context = 66 is too long: .* 66 tokens"),
    ],
)
def test_contexts_that_do_not_fit(name: str, rows: str, context: int | None, message: str, folders: Path) -> None:
    with pytest.raises(InputError, match=message) as caught:
        open_data(DataConfig(dir=str(folders / name), rows=rows), context=context, seed=0).rows.size("train")  # type: ignore[arg-type]
    assert caught.value.exit_code == 2


def test_a_context_that_cuts_off_the_answer() -> None:
    with pytest.raises(InputError, match="leaves no target"):
        open_data(DataConfig(task="blocks"), context=100, seed=0)


def test_a_longer_context_is_padded_where_there_is_a_separator() -> None:
    batch = open_data(DataConfig(task="blocks"), context=330, seed=0).train_batch(0, 2)
    assert batch.inputs.shape == (2, 330) and (batch.targets[:, 320:] == IGNORE).all()
    assert ((batch.targets != IGNORE).sum(axis=1) == 6).all()


def test_without_a_separator_documents_must_be_equally_long(tmp_path: Path) -> None:
    tokenizer = characters("ab", separator=False)
    with DatasetWriter(tmp_path / "d", tokenizer, Origin(kind="text", seed=0)) as writer:
        for text in ("abab", "aba"):
            writer.add("train", text, {})
    with pytest.raises(InputError, match="equally long"):
        open_data(DataConfig(dir=str(tmp_path / "d"), rows="documents"), context=2, seed=0)
    packed = open_data(DataConfig(dir=str(tmp_path / "d")), context=3, seed=0)
    assert packed.train_batch(0, 2).inputs.shape == (2, 3) and packed.prompt(0, 3) == "a"


def test_rows_just_as_long_as_the_stream(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abcdefghij" * 2)
    prepare_text([tmp_path / "a.txt"], tmp_path / "d", split={"train": 0.5, "val": 0.5})
    data = open_data(DataConfig(dir=str(tmp_path / "d")), context=11, seed=0)  # SEP + 10 + SEP = 12 tokens
    assert (data.train_batch(0, 3).inputs == [[256, *b"abcdefghij"]] * 3).all()
    with pytest.raises(InputError, match=r"'train' has 12 tokens: less than a row of model\.context = 12"):
        open_data(DataConfig(dir=str(tmp_path / "d")), context=12, seed=0).rows.size("train")


def test_a_split_that_is_not_used_may_be_shorter_than_a_row(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abcdefghij" * 3)
    prepare_text([tmp_path / "a.txt"], tmp_path / "d", split={"train": 0.1, "test": 0.9})
    data = open_data(DataConfig(dir=str(tmp_path / "d")), context=12, seed=0)
    assert data.rows.size("test") == len(list(data.held_out("test", 9, 1))) == 2
    for use in (lambda: data.rows.size("train"), lambda: list(data.held_out("train", 9, 1))):
        with pytest.raises(InputError, match="'train' has 5 tokens: less than a row"):
            use()


def test_factors_are_those_of_the_document_that_a_window_lies_in(tmp_path: Path) -> None:
    """Two documents of 20 bytes: windows of 8 tokens, 7 apart, over `SEP a×20 SEP b×20 SEP`."""
    folder = tmp_path / "texts"
    for label in ("a", "b"):
        (folder / label).mkdir(parents=True)
        (folder / label / "1.txt").write_text(label * 20)
    prepare_text([folder], tmp_path / "data", split={"train": 1.0})
    source = open_data(DataConfig(dir=str(tmp_path / "data")), context=7, seed=0)
    stream = [0, *[1] * 20, 0, *[2] * 20, 0]
    windows = [stream[start : start + 8] for start in range(0, len(stream) - 7, 7)]
    expected = [{"label": "a"} if start + 7 < 21 else {"label": "b"} if start >= 21 else {} for start in range(0, len(stream) - 7, 7)]
    assert source.held_out_factors("train", 99) == expected[: len(windows)]
    assert source.held_out_documents("train", 99).tolist() == [int(start >= 21) for start in range(0, len(stream) - 7, 7)]
    assert {} in expected and {"label": "b"} in expected


def test_factors_of_a_task_are_those_of_its_rows() -> None:
    source = open_data(DataConfig(task="letters"), context=None, seed=0)
    factors = source.held_out_factors("val", 50)
    rows = next(iter(source.held_out("val", 50, 50))).inputs
    assert [source.tokenizer.decode(row[:1]) for row in rows] == [one["letter"] for one in factors]
    assert source.held_out_documents("val", 50).tolist() == list(range(50))


def test_a_finite_training_set_is_the_head_of_the_endless_stream() -> None:
    """Of each seed its own; held-out rows and their factors stay those of the task."""
    for seed in (0, 3):
        endless, finite = (open_data(DataConfig(task="siblings", train_rows=rows), context=None, seed=seed) for rows in (None, 40))
        head = {row.tobytes() for row in endless.train_batch(0, 40).inputs}
        (train,) = finite.held_out("train", 100, 100)
        assert {row.tobytes() for row in train.inputs} == head
        ours, theirs = (next(data.held_out("val", 9, 9)).inputs for data in (finite, endless))
        assert (ours == theirs).all() and finite.rows.size("val") is None
        parents = [factors["parent"] for factors in finite.held_out_factors("train", 40)]
        assert parents == [finite.tokenizer.decode(row[3:4]) for row in train.inputs]


def test_teacherless_rows_hide_their_inputs_after_the_prompt() -> None:
    """About the share of rows is hidden, each as a whole; targets stay; a part of a batch hides the same rows."""
    config = DataConfig(task="circles", params={"seed_length": 3}, train_rows=500)
    plain, hidden = (open_data(config.model_copy(update={"teacherless": share}), context=None, seed=1) for share in (0.0, 0.25))
    word, found = hidden.tokenizer.encode("$")[0], []
    for step in range(8):
        one, other = plain.train_batch(step, 300), hidden.train_batch(step, 300)
        assert (one.targets == other.targets).all() and (one.inputs[:, :4] == other.inputs[:, :4]).all()
        rows = (other.inputs[:, 4:] == word).all(axis=1)
        assert (other.inputs[~rows] == one.inputs[~rows]).all() and not (one.inputs == word).any()
        parts = hidden.train_batch(step, 300, [range(20, 60), range(250, 300)])
        assert (parts.inputs == np.concatenate([other.inputs[20:60], other.inputs[250:300]])).all()
        found += rows.tolist()
    assert abs(np.mean(found) - 0.25) < 4 * (0.25 * 0.75 / len(found)) ** 0.5
    (held,) = hidden.held_out("val", 9, 9)
    assert not (held.inputs == word).any()


def test_only_tasks_with_a_word_for_it_hide_inputs() -> None:
    with pytest.raises(InputError, match="task 'letters' has no word that replaces hidden inputs"):
        open_data(DataConfig(task="letters", teacherless=0.5), context=None, seed=0)
