"""Tokenizers: text survives encoding and decoding, and an error names a character that cannot be encoded."""

from __future__ import annotations

import functools
import itertools
import json
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tokenizers as library
from hypothesis import given, settings
from hypothesis import strategies as st

from freetf_cli.data import tokenizer as tok
from freetf_cli.errors import InputError

CORPUS = ["the cat sat on the mat, and the other cat sat there too. "] * 20


@functools.cache
def bpe() -> tok.Tokenizer:
    return tok.train_bpe(CORPUS, 300)


@given(st.text())
@settings(deadline=None, max_examples=150)
def test_any_text_decodes_to_itself(text: str) -> None:
    for tokenizer in (tok.byte_level(), bpe()):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert all(0 <= i < tokenizer.vocab_size and i != tokenizer.separator for i in ids)


@pytest.mark.parametrize("text", ["<|endoftext|>", "a<|endoftext|>b", "\r\n\t \x7f", "  two  spaces  ", "é\u0301𝄞"])
def test_text_that_spells_a_separator_is_text(text: str) -> None:
    for tokenizer in (tok.byte_level(), bpe()):
        assert tokenizer.separator not in tokenizer.encode(text) and tokenizer.decode(tokenizer.encode(text)) == text


def test_bytes_are_their_values_and_the_file_agrees_with_the_fast_path() -> None:
    tokenizer = tok.byte_level()
    assert (tokenizer.vocab_size, tokenizer.separator, tokenizer.name) == (257, 256, "bytes")
    text = "".join(map(chr, range(1, 300))) + "𝄞\n"
    assert tokenizer.encode(text) == list(text.encode())
    assert library.Tokenizer.from_str(tokenizer.json).encode(text).ids == list(text.encode())
    assert tokenizer.decode([0xC3, 256, 110]) == "\ufffdn"
    assert tokenizer.decode([110, 300, 110]) == "n\ufffdn", "a model may have a larger vocabulary than its tokenizer"
    rewritten = tokenizer.json.replace("\n", "").replace("  ", " ")  # another version of the library may lay it out otherwise
    assert tok.from_json(rewritten).name == "bytes"


def test_characters() -> None:
    tokenizer = tok.characters("AB_>\n", separator=True)
    assert (tokenizer.vocab_size, tokenizer.separator, tokenizer.name) == (6, 5, "characters")
    assert tokenizer.encode("B>\nA") == [1, 3, 4, 0] == library.Tokenizer.from_str(tokenizer.json).encode("B>\nA").ids
    assert tokenizer.decode([5, 1, 3, 4, 5]) == "B>\n"
    assert tok.characters("01", separator=False).separator is None


def test_words() -> None:
    made = tok.words(("12", "3", "p0", "$"), separator=True)
    assert (made.name, made.vocab_size, made.separator, made.keeps_bytes) == ("words", 5, 4, False)
    assert made.encode("3 p0 12") == [1, 2, 0] and made.encode("") == []
    assert made.decode([4, 1, 2, 0, 4]) == "3 p0 12"
    assert tok.from_json(made.json).encode("12 $") == library.Tokenizer.from_str(made.json).encode("12 $").ids == [0, 3]
    for text in ("3 4", "3  p0", "3p0", " 3"):
        with pytest.raises(InputError, match="is not a word of the vocabulary; words are joined by single spaces"):
            made.encode(text)


@pytest.mark.parametrize(("text", "place"), [("ABx", "character 2"), ("é", "character 0"), ("A B", "character 1")])
def test_a_character_outside_the_vocabulary_is_named(text: str, place: str) -> None:
    with pytest.raises(InputError, match=f"vocabulary, {place} of line 7") as caught:
        tok.characters("AB", separator=True).encode(text, where="line 7")
    assert repr(text[int(place.split()[1])]) in str(caught.value) and caught.value.exit_code == 2


def test_half_a_surrogate_pair_is_no_text() -> None:
    with pytest.raises(InputError, match="character 1"):
        tok.byte_level().encode("a\ud800")


def test_a_foreign_tokenizer_may_not_drop_characters() -> None:
    inner = library.Tokenizer(library.models.BPE(vocab={"a": 0, "b": 1, "ab": 2}, merges=[("a", "b")]))
    foreign = tok.from_json(inner.to_str())
    assert foreign.encode("abba") == [2, 1, 0] and foreign.separator is None
    for text in ("abxa", "xab", "abx"):
        with pytest.raises(InputError, match=f"'x' is not in the tokenizer's vocabulary, character {text.index('x')}"):
            foreign.encode(text)
    unknown = library.Tokenizer(library.models.WordLevel({"the": 0, "[UNK]": 1}, unk_token="[UNK]"))
    unknown.pre_tokenizer = library.pre_tokenizers.Whitespace()
    pieces = library.Tokenizer(library.models.Unigram([("[UNK]", 0.0), ("t", -1.0), ("h", -1.0), ("e", -1.0), (" ", -1.0)], unk_id=0))
    for inner in (unknown, pieces):
        with pytest.raises(InputError, match="character 4"):
            tok.from_json(inner.to_str()).encode("the cat")


def test_what_a_foreign_tokenizer_loses_is_counted() -> None:
    words = library.Tokenizer(library.models.WordLevel({"the": 0, "cat": 1, "<s>": 2}))
    words.normalizer = library.normalizers.Lowercase()
    words.pre_tokenizer = library.pre_tokenizers.WhitespaceSplit()
    words.add_special_tokens(["<s>"])
    foreign = tok.from_json(words.to_str())
    text = "The cat\nthe <s> cat\n"
    missing, control = foreign.losses(text, foreign.encode_array(text))
    assert missing == {"T": 1, "\n": 2} and control == {"<s>": 1}
    changes = library.Tokenizer.from_str(bpe().json)
    changes.normalizer = library.normalizers.NFC()
    composed = tok.from_json(changes.to_str())
    assert composed.losses("e\u0301", composed.encode_array("e\u0301"))[0] == {"e": 1, "\u0301": 1}
    assert not any(bpe().losses("<|endoftext|>", bpe().encode_array("<|endoftext|>")))


def sentencepiece() -> library.Tokenizer:
    """BPE with byte fallback and `▁` for a space, as Llama 2 has it."""
    vocabulary = {token: i for i, token in enumerate(["<unk>", *(f"<0x{b:02X}>" for b in range(256)), "▁", "a", "b", "ab", "▁ab"])}
    merges = [("a", "b"), ("▁", "ab")]
    inner = library.Tokenizer(library.models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    inner.normalizer = library.normalizers.Sequence([library.normalizers.Prepend("▁"), library.normalizers.Replace(" ", "▁")])
    steps = [library.decoders.Replace("▁", " "), library.decoders.ByteFallback(), library.decoders.Fuse()]
    inner.decoder = library.decoders.Sequence([*steps, library.decoders.Strip(" ", 1, 0)])
    return inner


def word_piece() -> library.Tokenizer:
    inner = library.Tokenizer(library.models.WordPiece({"[UNK]": 0, "ab": 1, "##cd": 2, "é": 3}, unk_token="[UNK]"))
    inner.pre_tokenizer, inner.decoder = library.pre_tokenizers.Whitespace(), library.decoders.WordPiece()
    return inner


@pytest.mark.parametrize(
    ("made", "text", "sizes"),
    [
        (tok.byte_level, "aé", [1, 1, 1]),
        (lambda: tok.characters("aé𝄞", separator=True), "a𝄞é", [1, 4, 2]),
        (lambda: tok.from_json(sentencepiece().to_str()), "ab abé", [3, 3, 1, 1]),  # the first ▁ was put before the text
        (lambda: tok.from_json(word_piece().to_str()), "abcd é", [3, 2, 3]),
    ],
)
def test_bytes_that_tokens_stand_for(made: Callable[[], tok.Tokenizer], text: str, sizes: list[int]) -> None:
    tokenizer = made()
    assert tokenizer.byte_counts[tokenizer.encode(text)].tolist() == sizes
    assert tokenizer.separator is None or tokenizer.byte_counts[tokenizer.separator] == 0


def test_tokens_that_are_parts_of_characters_and_added_ones_have_their_bytes() -> None:
    plain = bpe()
    text = "né 𝄞 ουρανός the  the"
    assert plain.keeps_bytes and plain.byte_counts[plain.encode(text)].sum() == len(text.encode())
    inner = library.Tokenizer.from_str(plain.json)
    inner.add_tokens(["ουρανός"])
    more = tok.from_json(inner.to_str())
    assert more.byte_counts[more.encode(text)].sum() == len(text.encode()) and max(more.byte_counts[more.encode(text)]) == 14
    inner.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert not tok.from_json(inner.to_str()).keeps_bytes


def test_truncation_in_a_file_does_not_shorten_texts() -> None:
    inner = library.Tokenizer.from_str(bpe().json)
    inner.enable_truncation(3)
    inner.enable_padding(length=9)
    assert tok.from_json(inner.to_str()).encode("zyxwvuts") == bpe().encode("zyxwvuts")


def test_dropout_in_a_file_does_not_encode_at_random() -> None:
    tree = json.loads(bpe().json)
    tree["model"]["dropout"] = 0.5
    foreign = library.Tokenizer.from_str(json.dumps(tree))
    assert len({tuple(foreign.encode("the cat sat on the mat").ids) for _ in range(20)}) > 1
    tokenizer = tok.from_json(json.dumps(tree))
    assert {tuple(tokenizer.encode("the cat sat on the mat")) for _ in range(20)} == {tuple(bpe().encode("the cat sat on the mat"))}
    assert not json.loads(tokenizer.json)["model"].get("dropout")
    assert "BPE dropout (0.5) is switched off" in tokenizer.notes()[0]
    assert tok.from_json(tokenizer.json).notes() == bpe().notes() == []


def llama(kind: str) -> str:
    """A tokenizer.json with `<s>` and `</s>` but no `<|endoftext|>`, that puts `<s>` before a text and `</s>` after it."""
    words = {"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3, "b": 4, "ab": 5}
    if kind == "unigram":
        inner = library.Tokenizer(library.models.Unigram([(word, -1.0 - i) for word, i in words.items()], 0, False))
    else:
        inner = library.Tokenizer(library.models.BPE(words, [("a", "b")], unk_token="<unk>"))
    inner.add_special_tokens(["<unk>", "<s>", "</s>"])
    inner.post_processor = library.processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return inner.to_str()


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_special_token_becomes_the_separator(kind: str) -> None:
    plain = tok.from_json(llama(kind))
    (note,) = plain.notes()
    assert plain.separator is None and "has no <|endoftext|>" in note and "such as </s>" in note
    tokenizer = tok.from_json(plain.separated_by("</s>").json)
    assert (tokenizer.separator, tokenizer.vocab_size, tokenizer.notes()) == (2, 6, [])
    assert tokenizer.encode("abab") == plain.encode("abab")
    assert tokenizer.decode([2, 5, 2]) == "ab"
    with pytest.raises(InputError, match=r"no special token '<S>'; did you mean '<s>'\?"):
        plain.separated_by("<S>")
    with pytest.raises(InputError, match="no special token 'ab'"):
        plain.separated_by("ab")
    with pytest.raises(InputError, match=r"has <\|endoftext\|> as its separator"):
        tokenizer.separated_by("<s>")


def test_bpe_is_deterministic_and_small_vocabularies_are_refused() -> None:
    assert tok.train_bpe(CORPUS, 300).json == bpe().json
    assert bpe().separator == bpe().vocab_size - 1 and bpe().name == f"bpe:{bpe().vocab_size}"
    assert len(bpe().encode("the cat sat")) < 6
    with pytest.raises(InputError, match="257 or more"):
        tok.train_bpe(CORPUS, 200)


@pytest.mark.parametrize("text", ["acgt" * 200, "word " * 300 + "x" * 600 + " end", "\n" * 256, "a" * 255, ""])
def test_only_long_words_are_cut(text: str) -> None:
    pieces = list(tok._cut_long_words(text))
    runs = [run for piece in pieces for run in re.findall(r"\S+|\s+", piece)]
    assert "".join(pieces) == text and max(map(len, runs), default=0) <= 256
    assert len(pieces) == 1 + len(re.findall("[acgtx]{256}|\n{256}", text))


def test_training_time_is_linear_in_the_longest_word() -> None:
    started = time.perf_counter()
    trained = tok.train_bpe(["a" * 80_000], 300)  # uncut, these letters take four seconds
    assert time.perf_counter() - started < 2 and trained.vocab_size > 260
    long = "acgt" * (tok.LONG_TEXT // 4)
    assert trained.decode(trained.encode(long)) == long


def test_training_is_interrupted_by_a_signal() -> None:
    def endless() -> Iterator[str]:
        yield "a word"
        signal.raise_signal(signal.SIGINT)  # in the thread of the trainer; Python handles it in the main thread
        yield from itertools.repeat("more")

    with pytest.raises(KeyboardInterrupt):
        tok.train_bpe(endless(), 300)


def test_an_error_of_the_texts_ends_the_training() -> None:
    def broken() -> Iterator[str]:
        yield "a word"
        raise InputError("not UTF-8 text", "a.txt")

    with pytest.raises(InputError, match="not UTF-8"):
        tok.train_bpe(broken(), 300)


def test_saved_and_loaded(tmp_path: Path) -> None:
    for tokenizer in (tok.byte_level(), tok.characters("AB>", separator=True), bpe()):
        (tmp_path / "tokenizer.json").write_text(tokenizer.json, encoding="utf-8")
        for path in (tmp_path, tmp_path / "tokenizer.json"):
            again = tok.load(path)
            assert (again.sha256, again.name, again.separator) == (tokenizer.sha256, tokenizer.name, tokenizer.separator)
            assert again.encode("AB>") == tokenizer.encode("AB>")


HOSTILE = ["", "{}", "[]", "null", '{"model": 3}', "[" * 100_000, '{"a":' * 5000, tok.byte_level().json[:-40]]
HUGE = tok.byte_level().json.replace('"a": 97', '"a": 4000000000')


@pytest.mark.parametrize("text", [*HOSTILE, HUGE], ids=range(len(HOSTILE) + 1))
def test_hostile_files(text: str, tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text(text)
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        tok.load(file)


def test_missing_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        tok.load(tmp_path / "none.json")
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        tok.load(tmp_path)
