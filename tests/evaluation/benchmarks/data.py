"""Tiny hand-made data sets in the form of the public ones."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any


def write_all(folder: Path) -> Path:
    """One small data set for each benchmark, in the places where --data expects them."""
    _text(
        folder / "hellaswag/hellaswag_val_full.txt.bz2",
        "Tea: a man pours.\n1\nflies.\ndrinks.\nis a cup.\nsings.\nSnow: it\n0\nmelts.\nruns.\nis.\neats.\n",
    )
    _rows(
        folder / "winogrande/winogrande.jsonl.gz",
        *({"context_options": ["so Al", "so Bo"], "continuation": "won.", "gold": i} for i in (0, 1)),
    )
    _rows(
        folder / "openbookqa/openbook_qa.jsonl", *({"query": "Fog is near", "choices": ["a marsh", "a desert"], "gold": i} for i in (0, 1))
    )
    _rows(
        folder / "boolq/boolq.jsonl.gz",
        *({"query": "Passage: tea is hot.\nQuestion: is tea hot?", "choices": ["no", "yes"], "gold": 1} for _ in "ab"),
    )
    _rows(folder / "piqa/valid.jsonl.gz", *({"goal": f"Open door {i}", "sol1": "push", "sol2": "sing"} for i in "ab"))
    _text(folder / "piqa/valid-labels.lst", "0\n1\n")
    for part in ("Easy", "Challenge"):
        for split in ("Train", "Test"):
            _rows(folder / f"arc/ARC-{part}-{split}.jsonl.gz", *(_nested("Why?", "1234" if i else "ABCDE", 2) for i in range(3)))
    for split in ("train", "dev"):
        _rows(folder / f"commonsenseqa/{split}_rand_split.jsonl.gz", *(_nested(f"Where {i}?", "ABCDE", i) for i in range(3)))
    _rows(
        folder / "lambada/lambada_openai.jsonl.gz",
        *({"context": f"He said {word}, and she said", "continuation": word} for word in ("no", "yes")),
    )
    _text(folder / "lambada/lambada_test_plain_text.txt", "he said no , and she said no\n`` i , '' she said , `` say yes\n")
    _rows(folder / "haystack/haystack.jsonl", *({"text": f"It was noon on day {i}. " * 40} for i in range(3)))
    _babi(folder / "babi/tasks_1-20_v1-2.en.tar.gz")
    _code(folder)
    for split in ("train", "test"):
        _rows(
            folder / f"gsm8k/{split}.jsonl.gz",
            *({"question": f"{i} and {i}?", "answer": f"It is {2 * i}.\n#### {2 * i}"} for i in range(7)),
        )
    for name in ("NQ-open.dev.jsonl.gz", "NQ-open.efficientqa.dev.1.1.jsonl"):
        _rows(folder / "nq_open" / name, *({"question": f"who is {i}", "answer": ["Al", "Al B."]} for i in range(7)))
    trivia = ({"context": f"Question: {i}?\nAnswer:", "answer": "Onion", "aliases": ["Onions", "Onion"]} for i in range(7))
    _rows(folder / "triviaqa/triviaqa_sm_sub.jsonl.gz", *trivia)
    problem = {"text": "Question: Al has 2 and 3?\nAnswer: 2+3 = <<2+3=5>>5.\n#### 5", "factors": {"answer": 5}}
    _rows(folder / "word_problems/word_problems.jsonl", problem, problem)
    _rows(folder / "python_lines/python_lines.jsonl", *({"context": "def f(x):\n    return", "line": f" x + {i}"} for i in (1, 2)))
    _mmlu(folder / "mmlu/mmlu_dev_test.tar.gz")
    return folder


def _code(folder: Path) -> None:
    one = {"prompt": "def f(x):\n", "canonical_solution": "    return 2 * x\n", "entry_point": "f"}
    own = {**one, "test": "def check(candidate):\n    assert candidate(1) == 2\n"}
    more = {"base_input": [[1]], "plus_input": [[2], ["a"]], "atol": 0}
    _rows(folder / "humaneval/HumanEval.jsonl.gz", own, own)
    _rows(folder / "humanevalplus/HumanEvalPlus.jsonl.gz", *[{**own, **more}] * 2)
    alone = {**one, "prompt": '"""Double."""\n', "canonical_solution": "def f(x):\n    return 2 * x\n", "assertion": "assert f(1) == 2"}
    _rows(folder / "mbppplus/MbppPlus.jsonl.gz", *[{**alone, **more}] * 2)
    task = {"text": "Double.", "code": "def f(x):\r\n  return 2 * x", "test_list": ["assert f(1) == 2"], "test_setup_code": ""}
    _rows(folder / "mbpp/mbpp.jsonl.gz", *({**task, "task_id": i} for i in (1, 2, 3, 4, 5, 11, 12, 511)))


def _babi(path: Path) -> None:
    """Two stories of two questions for each task."""
    story = "1 Mary moved to the {}.\n2 John went to the garden.\n3 Where is Mary? \t{}\t1\n4 Mary ran home.\n5 Where is John?\tgarden\t2\n"
    text = "".join(story.format(place, place) for place in ("kitchen", "office"))
    members = {f"tasks_1-20_v1-2/en/qa{i}_a-b_{split}.txt": text for i in range(1, 7) for split in ("train", "test")}
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content.encode()))


def _nested(stem: str, labels: str, gold: int) -> dict[str, Any]:
    choices = [{"text": f"choice {label}", "label": label} for label in labels]
    return {"question": {"stem": stem, "choices": choices}, "answerKey": labels[gold]}


def _mmlu(path: Path) -> None:
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w:gz") as archive:
        for split, count in (("dev", 5), ("test", 2)):
            for subject in ("anatomy", "high_school_physics"):
                text = io.StringIO(newline="")
                table = csv.writer(text)
                table.writerow(["question", *(f"choice{i}" for i in range(4)), "answer"])
                table.writerows([[f"{subject} {split} {i}, why?", "a", "b, too", "c", "d", i % 4] for i in range(count)])
                content = text.getvalue().encode()
                info = tarfile.TarInfo(f"{split}/{subject}_{split}.csv")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


def _rows(path: Path, *rows: dict[str, Any]) -> None:
    _text(path, "".join(json.dumps(row) + "\n" for row in rows))


def _text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    packed = {".gz": gzip.compress, ".bz2": bz2.compress}.get(path.suffix, bytes)
    path.write_bytes(packed(text.encode()))
