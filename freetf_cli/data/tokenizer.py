"""Tokenizers of characters, words, bytes or BPE, each a `tokenizer.json` of the `tokenizers` library.

    tokenizer = byte_level()
    tokenizer.encode("né")                 # [110, 195, 169]
    tokenizer.decode([256, 110, 256])      # "n": the separator is not text

Text that spells the separator is encoded as text. A character outside the vocabulary raises an InputError that names it; what a
tokenizer.json from elsewhere changes or takes for a control token is reported by `Tokenizer.losses`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import decoders, models, pre_tokenizers, trainers

from freetf_cli.data.background import start, wait
from freetf_cli.errors import InputError, nearest

SEPARATOR = "<|endoftext|>"
FILE = "tokenizer.json"
LARGEST_FILE = 64 << 20  # bytes; those of the largest models have about 20 MB
LARGEST_VOCABULARY = 1 << 24  # tokens
NO_BYTE = 0xFF  # a byte that does not occur in UTF-8
SMALLEST_BPE = 257  # every byte and the separator
LONGEST_WORD = 256  # characters: training BPE takes time that is quadratic in the length of a word
LONG_RUN = re.compile(rf"\S{{{LONGEST_WORD}}}|\s{{{LONGEST_WORD}}}")  # a word of byte-level BPE is within a run of one of these kinds
LONG_TEXT = 1 << 18  # characters: encoding them takes about a second

Ids = NDArray[np.int64]


class Tokenizer:
    """Encodes text as ids 0 … vocab_size − 1. separator: the id of `<|endoftext|>`, or None.

    name: `characters`, `words`, `bytes`, or a kind and its size such as `bpe:8192`. json: the text of tokenizer.json.
    """

    def __init__(self, text: str) -> None:
        """text: a valid tokenizer.json (`from_json` checks those of users). Its BPE dropout, which encodes at random, is taken out."""
        self._inner, tree = tokenizers.Tokenizer.from_str(text), json.loads(text)
        self._dropout = tree["model"].pop("dropout", None)
        if self._dropout:
            text = json.dumps(tree, ensure_ascii=False, indent=2)
            self._inner = tokenizers.Tokenizer.from_str(text)
        self.json = text
        self._inner.encode_special_tokens = True  # `<|endoftext|>` inside a text is text
        self._inner.no_truncation()
        self._inner.no_padding()
        vocabulary = self._inner.get_vocab()
        self.vocab_size: int = max(vocabulary.values(), default=-1) + 1
        self.separator: int | None = self._inner.token_to_id(SEPARATOR)
        tokens = {token: i for token, i in vocabulary.items() if i != self.separator}
        kind = _kind(tree, tokens)
        self._bytes = kind == "bytes"
        self._table = tokens if kind in ("characters", "words") else None
        self._joint = " " if kind == "words" else ""  # what stands between the tokens of a text
        self.name = kind if self._bytes or self._table else f"{kind}:{self.vocab_size}"
        changes = tree.get("normalizer") is not None or '"Removed"' in text  # a pre-tokenizer may remove what it splits at
        self._complete = self._bytes or _spells_all_bytes(self._inner)
        self._lossless = self._table is not None or (self._complete and not changes)
        self._control = {token["id"]: str(token["content"]) for token in tree.get("added_tokens") or [] if token.get("special")}
        self._spells_bytes = "ByteLevel" in f"{self._inner.normalizer!r} {self._inner.pre_tokenizer!r}"
        self.keeps_bytes = self._bytes or kind == "characters" or (self._spells_bytes and _alters_nothing(tree))
        self._unknown = tree["model"].get("unk_id", self._inner.token_to_id(getattr(self._inner.model, "unk_token", None) or ""))

    @property
    def sha256(self) -> str:
        """SHA-256 of tokenizer.json."""
        return hashlib.sha256(self.json.encode("utf-8")).hexdigest()

    def encode(self, text: str, where: str = "") -> list[int]:
        """The ids of a text, without separators. InputError for a character outside the vocabulary; `where` is the location it names."""
        ids: list[int] = self.encode_array(text, where).tolist()
        return ids

    def encode_array(self, text: str, where: str = "") -> Ids:
        """The same ids as an array [tokens]."""
        try:
            raw = text.encode("utf-8")
            if self._bytes:
                return np.frombuffer(raw, np.uint8).astype(np.int64)
            if self._table is not None:
                pieces: Sequence[str] = text.split(self._joint) if self._joint and text else text
                return np.fromiter(map(self._table.__getitem__, pieces), np.int64, len(pieces))
        except UnicodeEncodeError as error:
            raise _outside(text, error.start, where) from None
        except KeyError as error:
            if self._joint:
                raise InputError(f"{error.args[0]!r} is not a word of the vocabulary; words are joined by single spaces", where) from None
            raise _outside(text, text.index(error.args[0]), where) from None
        return self._encode_subwords(text, where)

    def encode_batch(self, texts: Sequence[str], where: Sequence[str]) -> list[Ids]:
        """The ids of several texts, as arrays. The library encodes subwords on all cores, see `use_threads`."""
        if not (self._bytes or self._table):
            try:
                encodings = self._encodings(texts)
            except Exception:  # the library does not say which text it cannot encode: find it, one by one
                pass
            else:
                return [self._ids(*each) for each in zip(texts, encodings, where, strict=True)]
        return [self.encode_array(text, place) for text, place in zip(texts, where, strict=True)]

    def decode(self, ids: Sequence[int] | Ids) -> str:
        """The text of ids without separators. Bytes that are not UTF-8 become U+FFFD."""
        kept = [int(i) for i in ids if i != self.separator]
        if self._bytes:
            return bytes(min(i, NO_BYTE) for i in kept).decode("utf-8", errors="replace")
        return str(self._inner.decode(kept, skip_special_tokens=False))

    def losses(self, text: str, ids: Ids) -> tuple[Counter[str], Counter[str]]:
        """Characters of the text that are missing when its ids are decoded, and control tokens that it was encoded to, counted."""
        if self._lossless:
            return Counter(), Counter()
        decoded = self.decode(ids)
        missing = Counter[str]() if decoded == text else Counter(text) - Counter(decoded)
        return missing, Counter(self._control[i] for i in ids.tolist() if i in self._control)

    def notes(self) -> list[str]:
        """What a user of a tokenizer.json from elsewhere should know."""
        notes = []
        if self._dropout:
            notes.append(f"BPE dropout ({self._dropout:g}) is switched off: the same text always has the same tokens")
        if self.separator is None and (special := list(self._control.values())):
            likely = [token for token in special if re.search(r"end|eo[sdt]|^</s>$|sep", token, re.IGNORECASE)] or special
            named = ", ".join(likely[:4]) + (", …" if len(likely) > 4 else "")
            hint = f"--separator-token names a special token to use, such as {named}"
            notes.append(f"the tokenizer has no {SEPARATOR}, so documents follow each other without a separator; {hint}")
        elif self.separator is None:
            notes.append(f"the tokenizer has no {SEPARATOR} and no special token: documents follow each other without a separator")
        return notes

    def separated_by(self, token: str) -> Tokenizer:
        """A tokenizer like this one, with a special token of it as the separator: spelled `<|endoftext|>`, with its old id.

        InputError if there is no such token, or if the tokenizer has a separator.
        """
        if self.separator is not None:
            raise InputError(f"--separator-token: the tokenizer has {SEPARATOR} as its separator")
        if token not in self._control.values():
            raise InputError(
                f"--separator-token: the tokenizer has no special token '{token}'", hint=nearest(token, self._control.values())
            )
        tree = json.loads(self.json)
        vocabulary = tree["model"].get("vocab")
        if isinstance(vocabulary, dict):
            tree["model"]["vocab"] = {SEPARATOR if name == token else name: i for name, i in vocabulary.items()}
        elif isinstance(vocabulary, list):  # of pairs of a token and its score
            tree["model"]["vocab"] = [[SEPARATOR if name == token else name, score] for name, score in vocabulary]
        tree["added_tokens"] = [{**one, "content": SEPARATOR} if one["content"] == token else one for one in tree["added_tokens"]]
        return from_json(json.dumps(tree, ensure_ascii=False, indent=2))

    @cached_property
    def byte_counts(self) -> NDArray[np.float64]:
        """Bytes of UTF-8 text that each token stands for [vocab_size], 0 for the separator; estimates unless `keeps_bytes`."""
        added = {i: token.content for i, token in self._inner.get_added_tokens_decoder().items() if i != self.separator}
        plain = {i: token for token, i in self._inner.get_vocab().items() if i not in added and i != self.separator}
        sizes = self._sizes(plain) | {i: len(text.encode()) for i, text in added.items()}
        return np.array([sizes.get(i, 0) for i in range(self.vocab_size)], np.float64)

    def _sizes(self, plain: dict[int, str]) -> dict[int, int]:
        """Bytes of the tokens of the model itself, given by their spellings."""
        if self._spells_bytes:
            return {i: len(token) for i, token in plain.items()}
        alone = dict(zip(plain, self._inner.decode_batch([[i] for i in plain]), strict=True))
        word = next((i for i, text in alone.items() if text.strip().isalnum()), None)
        if word is None:
            return {i: len(text.encode()) for i, text in alone.items()}
        within = zip(plain, self._inner.decode_batch([[word, i] for i in plain]), strict=True)  # a token may have a space before it
        sizes = {i: max(0, len(text.encode()) - len(alone[word].encode())) for i, text in within}
        falls_back = "ByteFallback" in repr(self._inner.decoder)
        return sizes | {i: 1 for i, token in plain.items() if falls_back and re.fullmatch(r"<0x[0-9A-F]{2}>", token)}

    def _encode_subwords(self, text: str, where: str) -> Ids:
        try:
            if len(text) < LONG_TEXT:
                encoding = self._inner.encode(text, add_special_tokens=False)
            else:  # unlike `encode`, `encode_batch` lets other threads run
                (encoding,) = wait(start(lambda: self._encodings([text])))
        except Exception as error:  # the library raises nothing narrower
            raise InputError(f"the tokenizer cannot encode this text: {error}", where, "it has no token for unknown characters") from None
        return self._ids(text, encoding, where)

    def _encodings(self, texts: Sequence[str]) -> list[tokenizers.Encoding]:
        """Encode texts on several cores. Token offsets, a quarter of the work, are computed only if the vocabulary may lack characters."""
        encode = self._inner.encode_batch_fast if self._complete else self._inner.encode_batch
        return list(encode(list(texts), add_special_tokens=False))

    def _ids(self, text: str, encoding: tokenizers.Encoding, where: str) -> Ids:
        ids = np.array(encoding.ids, np.int64)
        if not self._complete:
            self._refuse_dropped(text, ids, encoding.offsets, where)
        return ids

    def _refuse_dropped(self, text: str, ids: Ids, offsets: list[tuple[int, int]], where: str) -> None:
        """Raise InputError if the tokenizer replaced a character by its unknown token or dropped one, which leaves a gap."""
        end = 0
        for token, (first, last) in zip(ids, offsets, strict=True):
            if token == self._unknown:
                raise _outside(text, first, where)
            if text[end:first].strip():
                break
            end = max(end, last)
        if text[end:].strip():
            alone = (i for i, c in enumerate(text) if not c.isspace() and not self._inner.encode(c, add_special_tokens=False).ids)
            raise _outside(text, next(alone, end), where)


def use_threads(count: int | None) -> None:
    """Set the number of threads of the `tokenizers` library; without effect once it has started them. None: one per core."""
    if count is not None:
        os.environ["RAYON_NUM_THREADS"] = str(count)


def characters(alphabet: str, separator: bool) -> Tokenizer:
    """A tokenizer with one token a character, ids in the order of the alphabet, then the separator if there is one."""
    inner = tokenizers.Tokenizer(models.WordLevel({c: i for i, c in enumerate(alphabet)}))
    inner.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    if separator:
        inner.add_special_tokens([SEPARATOR])
    return Tokenizer(inner.to_str(pretty=True))


def words(vocabulary: Sequence[str], separator: bool, pattern: str | None = None) -> Tokenizer:
    """A tokenizer with one token a word, ids in the order given, then the separator if there is one.

    pattern: what a word is; None: words are joined by single spaces, which belong to none.
    """
    inner = tokenizers.Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}))
    if pattern is None:
        inner.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    else:
        inner.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
        inner.decoder = decoders.Fuse()
    if separator:
        inner.add_special_tokens([SEPARATOR])
    return Tokenizer(inner.to_str(pretty=True))


def byte_level() -> Tokenizer:
    """A tokenizer whose ids are the 256 bytes and the separator, 256. It can encode every text."""
    inner = tokenizers.Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(_byte_spellings())}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return _with_separator(inner)


def train_bpe(texts: Iterable[str], vocab: int) -> Tokenizer:
    """Train byte-level BPE with `vocab` tokens, or fewer if the texts have too few pairs. The separator is the last.

    Words of more than LONGEST_WORD characters are cut for training, so that its time is linear in the text.
    """
    if vocab < SMALLEST_BPE:
        hint = f"it must have every byte and a separator: {SMALLEST_BPE} or more"
        raise InputError(f"a BPE vocabulary of {vocab} is too small", hint=hint)
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=vocab - 1, initial_alphabet=alphabet, show_progress=False)
    stopped = threading.Event()
    try:
        pieces = (piece for text in takewhile(lambda _: not stopped.is_set(), texts) for piece in _cut_long_words(text))
        wait(start(lambda: inner.train_from_iterator(pieces, trainer)))
    finally:
        stopped.set()
    return _with_separator(inner)


def _cut_long_words(text: str) -> Iterator[str]:
    """Cut the text after each LONGEST_WORD consecutive characters that are all whitespace or all not."""
    begin = 0
    for run in LONG_RUN.finditer(text):
        yield text[begin : run.end()]
        begin = run.end()
    yield text[begin:]


def _with_separator(inner: tokenizers.Tokenizer) -> Tokenizer:
    """A byte-level tokenizer, with its decoder and the separator as its last token."""
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([SEPARATOR])
    return Tokenizer(inner.to_str(pretty=True))


def load(path: Path) -> Tokenizer:
    """Load a tokenizer.json, or the one in a folder; InputError if it is not valid."""
    file = path / FILE if path.is_dir() else path
    try:
        if file.stat().st_size > LARGEST_FILE:
            raise InputError(f"the tokenizer is larger than {LARGEST_FILE >> 20} MiB", str(file))
        text = file.read_bytes().decode("utf-8")
    except OSError as error:
        raise InputError(f"the tokenizer cannot be read: {error.strerror}", str(file)) from None
    except UnicodeDecodeError:
        raise InputError("the tokenizer is not UTF-8 text", str(file)) from None
    return from_json(text, where=str(file))


def from_json(text: str, where: str = "") -> Tokenizer:
    """Load a tokenizer from the text of a tokenizer.json; InputError if it is not valid."""
    try:
        tokenizer = Tokenizer(text)
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # a panic inside the library is not an Exception
        raise InputError(f"not a usable tokenizer.json: {str(error)[:120]}", where) from None
    if not 0 < tokenizer.vocab_size <= LARGEST_VOCABULARY:
        raise InputError(f"a tokenizer with {tokenizer.vocab_size} tokens is not supported", where)
    return tokenizer


def _outside(text: str, index: int, where: str) -> InputError:
    place = f"character {index}" + (f" of {where}" if where else "")
    if "\ud800" <= text[index] <= "\udfff":  # stands for a byte of the command line that is not UTF-8
        return InputError("the text is not UTF-8", place)
    return InputError(f"{text[index]!r} is not in the tokenizer's vocabulary", place)


def _kind(tree: dict[str, Any], tokens: dict[str, int]) -> str:
    """What a tokenizer.json encodes, whichever library wrote it: `bytes`, `characters`, `words` as made here, else its model's type."""
    before, model = tree.get("pre_tokenizer") or {}, str(tree["model"].get("type")).lower()
    if tree.get("normalizer") is not None:
        return model
    if before.get("type") == "ByteLevel" and not before.get("add_prefix_space"):
        return "bytes" if tokens == {c: i for i, c in enumerate(_byte_spellings())} else model
    splits = before.get("type") == "Split" and model == "wordlevel" and bool(tokens)
    if splits and before.get("pattern") == {"String": " "} and tree["model"].get("unk_token") not in tokens:
        return "words"
    return "characters" if splits and all(len(token) == 1 for token in tokens) else model


def _alters_nothing(tree: dict[str, Any]) -> bool:
    """Whether a byte-level tokenizer.json neither normalises a text nor puts a space before it."""
    puts_space = '"add_prefix_space": true' in json.dumps(tree.get("pre_tokenizer"))
    return not puts_space and tree.get("normalizer") in (None, {"type": "ByteLevel"})


def _byte_spellings() -> list[str]:
    """The spelling of each byte in byte-level tokenizers: the Latin-1 character if it is printable, else the next one from U+0100."""
    spellings = sorted(pre_tokenizers.ByteLevel.alphabet())
    others = (c for c in spellings if ord(c) > 255)
    return [chr(b) if chr(b) in spellings else next(others) for b in range(256)]


def _spells_all_bytes(inner: tokenizers.Tokenizer) -> bool:
    """Whether the tokenizer is byte-level BPE with every byte in its vocabulary, so that it can encode every text."""
    return "ByteLevel" in repr(inner.pre_tokenizer) and None not in map(inner.token_to_id, _byte_spellings())
