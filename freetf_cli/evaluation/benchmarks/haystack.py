"""Long prompts: sentences that the answer depends on, hidden in other text, for the benchmarks needles and babilong.

    needles    {"query": "… The magic number of Lisbon is 7412. …\\nQuestion: What is the magic number of Lisbon?\\n"
                         "Answer: The magic number of Lisbon is",
                "choices": ["3094", "7412"], "gold": 1, "needles": 2, "depth": 50, "length": 1024, "haystack": "given"}
    babilong   {"query": "… Mary moved to the bathroom. …\\nQuestion: Where is Mary?\\nAnswer:",
                "choices": ["bathroom", …], "gold": 0, "question": "qa1", "length": 1024}

A length is the most tokens that separator, prompt and longest answer take in the run's tokenizer. Only lengths within the model's context
are asked for, so no prompt loses its beginning. `haystack/haystack.jsonl.gz` in the folder of --data has the other text: an object with
`text` a line. Without it, needles are hidden in generated sentences. Items do not depend on --seed.

needles: as the task of this name (tasks/needles.py). The choices are all the numbers in the prompt.

babilong: the facts of a bAbI story up to a question (arXiv 1502.05698, tasks 1 to 5), in their order, at random places in other text, as
in BABILong (arXiv 2406.10149). At length 0 nothing else is in the prompt. The choices are all answers to the questions of a task. At
every length they are the first questions, in one random order, whose facts fit.
"""

from __future__ import annotations

import gzip
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np

from freetf_cli.errors import InputError
from freetf_cli.streams import keyed
from freetf_cli.tasks.needles import DEPTHS, NEEDLES, Haystack, Tokens, count_bytes, draw_needles, generated_haystack, hidden

LENGTHS = (512, 1024, 2048, 4096)  # tokens
ITEMS = 100  # in a cell of either grid: 500 for each number of needles and length, as in arXiv 2504.00927
MOST_TEXT = 4_000_000  # characters of the haystack's file that are used
SENTENCE = (20, 300)  # characters of a sentence that is used
BABI_QUESTIONS = tuple(f"qa{number}" for number in range(1, 6))

Doc = dict[str, Any]


@dataclass(frozen=True)
class Room:
    """What a model can read. tokens: the number of tokens of a text in its tokenizer; context: the most that it reads, None: any number."""

    tokens: Tokens = count_bytes
    context: int | None = LENGTHS[-1]

    def lengths(self) -> list[int]:
        """The lengths that fit the context; the context itself if it is shorter than all of them."""
        return [length for length in LENGTHS if self.context is None or length <= self.context] or [int(self.context or 0)]


def read_haystack(data: Path, room: Room) -> Haystack | None:
    """The sentences in `haystack/haystack.jsonl.gz`, or the file without `.gz`; None without a file. InputError if it has too few."""
    folder = data / "haystack"
    path = next((file for file in (folder / "haystack.jsonl.gz", folder / "haystack.jsonl") if file.exists()), None)
    if path is None:
        return None
    texts, left = list[str](), MOST_TEXT
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip() and left > 0:
                try:
                    texts.append(str(json.loads(line)["text"])[:left])
                except (ValueError, KeyError, TypeError):
                    what = f"--data: line {number} is not an object with a text"
                    raise InputError(what, str(path), 'an object a line: {"text": "It was noon. …"}') from None
                left -= len(texts[-1])
    sentences = [
        one for text in texts for one in re.split(r"(?<=[.!?])\s+", " ".join(text.split())) if SENTENCE[0] <= len(one) <= SENTENCE[1]
    ]
    if len(sentences) < 2:
        raise InputError("--data: the haystack has no sentences", str(path), 'an object a line: {"text": "It was noon. …"}')
    return Haystack("given", sentences, room.tokens)


def needles(data: Path, room: Room) -> dict[str, list[Doc]]:
    """Items of every cell in turn, so that a small --limit covers the grid. Cells whose needles do not fit are left out."""
    haystack = read_haystack(data, room) or generated_haystack(room.tokens)
    cells = list(product(NEEDLES, room.lengths(), DEPTHS))
    found = (_needles(haystack, *cell, number) for number, cell in product(range(ITEMS), cells))
    return {"test": _enough([doc for doc in found if doc is not None], "needles", room)}


def _needles(haystack: Haystack, count: int, length: int, depth: int, number: int) -> Doc | None:
    found = draw_needles(keyed(count, length, depth, number, "needles"), haystack, count, depth, length)
    if found is None:
        return None
    choices = sorted(found.numbers)
    about = {"needles": count, "depth": depth, "length": length, "haystack": haystack.name}
    return {"query": found.prompt, "choices": choices, "gold": choices.index(found.numbers[0]), **about}


def babilong(data: Path, room: Room) -> dict[str, list[Doc]]:
    """Items of every cell in turn. InputError without a haystack: the file's sentences are what makes the task long."""
    haystack = read_haystack(data, room)
    if haystack is None:
        raise FileNotFoundError(2, "no such file", str(data / "haystack" / "haystack.jsonl.gz"))
    lengths = [0, *room.lengths()]
    cells = [_babilong(haystack, name, stories, length, room) for name, stories in read_babi(data).items() for length in lengths]
    columns = [list(islice(cell, ITEMS)) for cell in cells]
    docs = [column[number] for number in range(ITEMS) for column in columns if number < len(column)]
    return {"test": _enough(docs, "babilong", room)}


Story = tuple[list[str], str, str]  # facts, question, answer


def _babilong(haystack: Haystack, name: str, stories: Sequence[Story], length: int, room: Room) -> Iterator[Doc]:
    """The items of a cell, those questions in a fixed random order whose facts fit."""
    choices = sorted({answer for _, _, answer in stories})
    longest = max(choices, key=room.tokens)
    for number in keyed("babilong", name).permutation(len(stories)):
        facts, question, answer = stories[number]
        rng = keyed(length, int(number), "babilong", name)
        shares = np.sort(rng.random(len(facts))).tolist()

        def hide(sentences: Sequence[str], facts: Sequence[str] = facts, shares: Sequence[float] = shares, question: str = question) -> str:
            return hidden(sentences, facts, [round(share * len(sentences)) for share in shares]) + f"\nQuestion: {question}\nAnswer:"

        most = length or room.context or LENGTHS[-1]
        hay = haystack if length else Haystack("", [], room.tokens)
        query = hay.fill(rng, hide, f" {longest}", most)
        if query is not None:
            yield {"query": query, "choices": choices, "gold": choices.index(answer), "question": name, "length": length}


def read_babi(data: Path) -> dict[str, list[Story]]:
    """The test questions of bAbI's tasks 1 to 5, each with the facts of its story up to it."""
    found = dict[str, list[Story]]()
    with tarfile.open(data / "babi" / "tasks_1-20_v1-2.en.tar.gz") as archive:
        for member in sorted(archive.getnames()):
            match = re.search(r"/en/(qa\d+)_[\w-]+_test\.txt$", member)
            if match and match[1] in BABI_QUESTIONS and (file := archive.extractfile(member)):
                found[match[1]] = list(_stories(file.read().decode("utf-8").splitlines()))
    if missing := [name for name in BABI_QUESTIONS if not found.get(name)]:
        raise InputError(f"--data: bAbI's archive has no test questions of {missing[0]}", str(data / "babi"))
    return {name: found[name] for name in BABI_QUESTIONS}


def _stories(lines: Sequence[str]) -> Iterator[Story]:
    """`1 Mary moved to the bathroom.` is a fact, and 1 starts a story; `3 Where is Mary? \\tbathroom\\t1` is a question."""
    facts = list[str]()
    for line in lines:
        number, _, rest = line.partition(" ")
        if number == "1":
            facts = []
        question, *answer = rest.split("\t")
        if answer:
            yield list(facts), question.strip(), answer[0].strip()
        else:
            facts.append(rest.strip())


def _enough(docs: list[Doc], name: str, room: Room) -> list[Doc]:
    if not docs:
        raise InputError(
            f"--task {name}: no item fits the model's context of {room.context} tokens", hint="measure a run with a longer model.context"
        )
    return docs
