"""Token files of Megatron, datatrove, nanoGPT and `datasets`, written here by hand, are used where they are."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from freetf_cli.config.recipe import DataConfig
from freetf_cli.data import foreign
from freetf_cli.data.batches import open_data
from freetf_cli.data.dataset import Dataset
from freetf_cli.data.prepare import prepare_text
from freetf_cli.data.refer import refer_to_tokens
from freetf_cli.data.tokenizer import byte_level, characters
from freetf_cli.errors import InputError

Cli = Callable[..., Any]
Write = Callable[[Path, Sequence[Sequence[int]]], Path]
SEP = 256  # of the tokenizer `bytes`
TEXTS = [f"document {i} {'x' * i}" for i in range(20)]
DOCUMENTS = [[*text.encode(), SEP] for text in TEXTS]


def joined(documents: Sequence[Sequence[int]]) -> np.ndarray:
    return np.concatenate([np.array(document, np.int64) for document in documents])


def megatron(path: Path, documents: Sequence[Sequence[int]], code: int = 8, kind: str = "<u2", cut: int = 1) -> Path:
    """As IndexedDatasetBuilder writes it. cut: sequences of a document."""
    sequences = [part for document in documents for part in np.array_split(document, cut)]
    lengths = np.array([len(sequence) for sequence in sequences], "<i4")
    pointers = (np.cumsum(lengths, dtype="<i8") - lengths) * np.dtype(kind).itemsize
    np.concatenate(sequences).astype(kind).tofile(path.with_suffix(".bin"))
    head = struct.pack("<9sQBQQ", b"MMIDIDX\x00\x00", 1, code, len(sequences), len(documents) + 1)
    bounds = np.arange(0, len(sequences) + 1, cut, dtype="<i8")
    path.with_suffix(".idx").write_bytes(head + lengths.tobytes() + pointers.astype("<i8").tobytes() + bounds.tobytes())
    return path.with_suffix(".bin")


def megatron_int32(path: Path, documents: Sequence[Sequence[int]]) -> Path:
    return megatron(path, documents, 4, "<i4", cut=2)


def datatrove(path: Path, documents: Sequence[Sequence[int]], kind: str = "<u2") -> Path:
    """As TokenizedFile writes it, with the metadata that it has since tokens may have four bytes."""
    path = path.with_suffix(".ds")
    joined(documents).astype(kind).tofile(path)
    np.cumsum([len(document) for document in documents]).astype("<u8").tofile(f"{path}.index")
    size = np.dtype(kind).itemsize
    Path(f"{path}.metadata").write_text(f"gpt2|{size}\n{path.stat().st_size // size}\n1 T")
    return path


def datatrove_wide(path: Path, documents: Sequence[Sequence[int]]) -> Path:
    return datatrove(path, documents, "<u4")


def nanogpt(path: Path, documents: Sequence[Sequence[int]]) -> Path:
    joined(documents).astype("<u2").tofile(path.with_suffix(".bin"))
    return path.with_suffix(".bin")


def datasets(path: Path, documents: Sequence[Sequence[int]], kind: str = "int32", column: str = "input_ids") -> Path:
    """As Dataset.save_to_disk writes it: batches of rows in an IPC stream, and a state that names the files."""
    arrow = pytest.importorskip("pyarrow")
    folder = path.with_suffix("")
    folder.mkdir(parents=True)
    rows = arrow.array(list(documents), arrow.list_(getattr(arrow, kind)()))
    table = arrow.table({"text": ["…"] * len(documents), column: rows})
    with arrow.ipc.new_stream(str(folder / "data-00000-of-00001.arrow"), table.schema) as stream:
        stream.write_table(table, max_chunksize=7)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    (folder / "cache-1.arrow").write_bytes(b"not a part of it")
    return folder


def datasets_int64(path: Path, documents: Sequence[Sequence[int]]) -> Path:
    return datasets(path, documents, "int64")


WRITERS = [megatron, megatron_int32, datatrove, datatrove_wide, nanogpt, datasets, datasets_int64]


def kind_of(write: Write) -> str:
    return write.__name__.partition("_")[0]


def refer(path: Path, write: Write, **options: Any) -> Dataset:
    out = path.parent / "d" if path.parent.is_dir() else path
    refer_to_tokens([str(path)], out, kind=kind_of(write), **{"tokenizer": "bytes", **options})
    return Dataset.open(out)


def texts(data: Dataset, name: str) -> list[str]:
    return [data.tokenizer.decode(data.split(name).row(i)) for i in range(len(data.split(name)))]


# --- the stream is the one that `prepare` would have written ------------------------------------------------------------


@pytest.mark.parametrize("write", WRITERS)
def test_every_kind_is_the_stream_of_its_documents(write: Write, tmp_path: Path) -> None:
    summary = refer_to_tokens([str(write(tmp_path / "a", DOCUMENTS))], tmp_path / "d", kind=kind_of(write), tokenizer="bytes")
    data = Dataset.open(tmp_path / "d")
    assert texts(data, "train") == TEXTS[:18] and texts(data, "val") == TEXTS[18:] and not summary.notes
    for name, span in (("train", slice(18)), ("val", slice(18, 20))):
        split = data.split(name)
        stream = [SEP, *joined(DOCUMENTS[span])]
        assert split.slice(0, split.tokens).tolist() == stream and split.tokens == len(stream)
        assert split.facts.bytes == sum(map(len, TEXTS[span])) and list(split.records())[1] == {}
    sizes = {str(path.relative_to(tmp_path / "d")): path.stat().st_size for path in (tmp_path / "d").glob("*/*")}
    assert sizes == {"train/offsets.bin": 8 * 19, "val/offsets.bin": 8 * 3}, "no token is copied"


@pytest.mark.parametrize("separators", ["before", "after", "between", "around"])
def test_separators_may_stand_before_or_after_documents(separators: str, tmp_path: Path) -> None:
    tokens = [token for text in TEXTS for token in (SEP, *text.encode())]
    tokens = tokens[separators in ("between", "after") :] + [SEP] * (separators in ("after", "around"))
    data = refer(nanogpt(tmp_path / "a", [tokens]), nanogpt, split={"train": 1})
    assert texts(data, "train") == TEXTS
    assert data.split("train").slice(0, 10**6).tolist() == [SEP, *joined(DOCUMENTS)]


def test_training_rows_are_those_of_prepared_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(TEXTS))
    prepare_text([tmp_path / "a.txt"], tmp_path / "own", document_separator="\n", split={"train": 1})
    refer(datatrove(tmp_path / "a", DOCUMENTS), datatrove, split={"train": 1})
    for rows in ("packed", "documents"):
        own, other = (open_data(DataConfig(dir=str(tmp_path / name), rows=rows), context=16, seed=0) for name in ("own", "d"))  # type: ignore[arg-type]
        for step in range(4):
            assert (own.train_batch(step, 8).inputs == other.train_batch(step, 8).inputs).all()
        assert other.rows.factors("train", np.arange(3)) == [{}, {}, {}]
        assert (own.token_bytes("train") == other.token_bytes("train")).all()


def test_files_named_after_splits_are_these_splits(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    nanogpt(tmp_path / "shards" / "train", DOCUMENTS[:12])
    nanogpt(tmp_path / "shards" / "val", DOCUMENTS[12:])
    data = refer(tmp_path / "shards", nanogpt)
    assert texts(data, "train") == TEXTS[:12] and texts(data, "val") == TEXTS[12:]
    datasets(tmp_path / "saved" / "train", DOCUMENTS[:3])
    datasets(tmp_path / "saved" / "test", DOCUMENTS[3:])
    refer_to_tokens([str(tmp_path / "saved")], tmp_path / "e", kind="datasets", tokenizer="bytes")
    assert texts(Dataset.open(tmp_path / "e"), "test") == TEXTS[3:]


def test_documents_of_several_files_are_divided_in_order(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    for number in range(4):
        datatrove(tmp_path / "shards" / f"{number:05d}_tokens", DOCUMENTS[5 * number : 5 * number + 5])
    data = refer(tmp_path / "shards", datatrove, split={"train": 0.6, "val": 0.2, "test": 0.2})
    assert (texts(data, "train"), texts(data, "val"), texts(data, "test")) == (TEXTS[:12], TEXTS[12:16], TEXTS[16:])


def test_without_a_separator_documents_are_those_of_the_index(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(characters("abc", separator=False).json)
    data = refer(megatron(tmp_path / "a", [[0, 1], [2], [1, 1, 1]]), megatron, split={"train": 1}, tokenizer=str(tmp_path))
    assert texts(data, "train") == ["ab", "c", "bbb"]


def test_a_separator_inside_documents_is_noted(tmp_path: Path) -> None:
    path = megatron(tmp_path / "a", [[97, SEP, 98, SEP], [99, SEP]])
    summary = refer_to_tokens([str(path)], tmp_path / "d", kind="megatron", tokenizer="bytes", split={"train": 1})
    assert summary.notes == [f"{path}: the separator makes 3 documents, the index names 2"]


# --- what is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [megatron, datatrove, nanogpt, datasets])
def test_a_token_outside_the_vocabulary_is_named(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign, "SCANNED", 3)
    path = write(tmp_path / "a", [[1, 2, 3, SEP], [4, 257, SEP]])
    with pytest.raises(InputError, match=r"token 5 is 257, and the tokenizer has 257 tokens, .*/(a\.|data-0).*; give the tokenizer"):
        refer(path, write)
    assert not (tmp_path / "d").exists()


def test_a_negative_token_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="token 1 is -1, and"):
        refer(megatron_int32(tmp_path / "a", [[1, -1, SEP]]), megatron_int32)


@pytest.mark.parametrize("write", [megatron, datatrove, nanogpt])
@pytest.mark.parametrize("cut", [1, 2])
def test_a_file_that_is_cut_off(cut: int, write: Write, tmp_path: Path) -> None:
    path = write(tmp_path / "a", DOCUMENTS)
    path.write_bytes(path.read_bytes()[:-cut])
    if write is nanogpt and cut == 2:
        assert texts(refer(path, write), "val")[-1] == TEXTS[-1], "without an index nothing shows that the last separator is missing"
    else:
        with pytest.raises(InputError, match=r"no whole number of tokens|its index names"):
            refer(path, write)


def test_damaged_indices(tmp_path: Path) -> None:
    path = megatron(tmp_path / "a", DOCUMENTS)
    index = path.with_suffix(".idx")
    raw = index.read_bytes()
    for damaged in (raw[:-3], b"", raw[:17] + b"\x06" + raw[18:], b"X" + raw[1:], raw[:34] + b"\xff\xff\xff\xff" + raw[38:]):
        index.write_bytes(damaged)
        with pytest.raises(InputError, match=r"the index is damaged, or not one of Megatron, .*a\.idx"):
            refer(path, megatron)
    path = datatrove(tmp_path / "b", DOCUMENTS)
    ends = np.fromfile(f"{path}.index", "<u8")
    ends[[2, 3]] = ends[[3, 2]]
    ends.tofile(f"{path}.index")
    with pytest.raises(InputError, match="do not ascend"):
        refer(path, datatrove)
    path = datasets(tmp_path / "c", DOCUMENTS)
    file = path / "data-00000-of-00001.arrow"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(InputError, match=r"damaged|cannot be read"):
        refer(path, datasets)


def test_a_column_that_is_not_tokens(tmp_path: Path) -> None:
    path = datasets(tmp_path / "a", DOCUMENTS, column="ids")
    with pytest.raises(InputError, match="no column 'input_ids'"):
        refer(path, datasets)
    with pytest.raises(InputError, match="column 'text' is not lists of tokens but string"):
        refer(path, datasets, column="text")
    assert texts(refer(path, datasets, column="ids"), "train") == TEXTS[:18]


def test_tokens_without_separators_are_refused_if_the_tokenizer_has_one(tmp_path: Path) -> None:
    path = megatron(tmp_path / "a", [list(text.encode()) for text in TEXTS])
    with pytest.raises(InputError, match=r"no separator, <\|endoftext\|> \(256\), .*--append-eod"):
        refer(path, megatron)


def test_too_few_documents(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="too few documents for every split: 1"):
        refer(nanogpt(tmp_path / "a", DOCUMENTS[:1]), nanogpt)


def test_a_file_that_changed_later_is_named(tmp_path: Path) -> None:
    path = nanogpt(tmp_path / "a", DOCUMENTS)
    refer(path, nanogpt)
    raw = path.read_bytes()
    for changed, message in ((raw[:2] + b"\1" + raw[3:], "SHA-256"), (raw[:-2], "truncated"), (None, "missing")):
        path.unlink() if changed is None else path.write_bytes(changed)
        with pytest.raises(InputError, match=rf"{message}.*a\.bin"):
            Dataset.open(tmp_path / "d")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("parts", [[0, 10**6]], "names tokens beyond the end of a file, .*a.bin"),
        ("parts", [[0]], "the manifest is damaged: .*parts"),
        ("type", "float32", "the manifest is damaged: .*type"),
        ("parts", [[2, 10]], "offsets and tokens do not fit the manifest"),
    ],
)
def test_a_damaged_manifest(key: str, value: Any, message: str, tmp_path: Path) -> None:
    refer(nanogpt(tmp_path / "a", DOCUMENTS), nanogpt)
    manifest = json.loads((tmp_path / "d" / "manifest.json").read_text())
    manifest["splits"]["train"]["foreign"][0][key] = value
    (tmp_path / "d" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=message):
        Dataset.open(tmp_path / "d")


# --- from the command line ----------------------------------------------------------------------------------------------


def test_the_command(run_cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(byte_level().json)
    megatron(tmp_path / "web_text_document", DOCUMENTS)
    args = ["--tokens", "megatron", "--tokenizer", tmp_path / "tokenizer.json", "-o", tmp_path / "d"]
    done = run_cli("prepare", tmp_path / "web_text_document", *args, "--json")  # by its prefix, as Megatron's own options name it
    assert done.code == 0 and json.loads(done.stdout)["splits"]["train"]["documents"] == 18


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--tokens", "megatrom"], "did you mean 'megatron'"),
        (["--tokens", "nanogpt", "--dedup"], "--dedup is for text, and --tokens nanogpt reads tokens"),
        (["--tokens", "nanogpt", "--field", "x"], "--field is for text"),
        (["--tokens", "nanogpt", "--tokenizer", "bpe:300"], "--tokens needs the tokenizer that made the files"),
        (["--tokens", "datatrove"], "the folder has no .ds files"),
    ],
)
def test_options_that_do_not_fit(args: list[str], message: str, run_cli: Cli, tmp_path: Path) -> None:
    nanogpt(tmp_path / "a", DOCUMENTS)
    done = run_cli("prepare", tmp_path, "-o", tmp_path / "d", *args)
    assert done.code == 2 and message in done.stderr and not (tmp_path / "d").exists()


def test_the_header_of_llm_c_is_not_tokens(tmp_path: Path) -> None:
    file = nanogpt(tmp_path / "a", DOCUMENTS)
    header = np.array([20240520, 1, 8, *[0] * 253], "<i4").tobytes()
    file.write_bytes(header + file.read_bytes())
    with pytest.raises(InputError, match=r"begins with the header of llm\.c .*; leave it out: tail -c \+1025 FILE"):
        refer(file, nanogpt)
