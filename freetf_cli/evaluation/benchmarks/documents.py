"""Reads the benchmarks' data files into documents in the form that the task files expect.

    choices      {"query": "Question: …\\nAnswer:", "choices": ["a marsh", …], "gold": 0}
    winogrande   {"choices": ["… so Sarah", "… so Maria"], "continuation": "is …", "gold": 0}: the same continuation is
                 scored after each choice
    last_word    {"query": "…", "answer": "signs"}
    em, number   {"query": "Question: …\nAnswer:", "answer": "14 December 1972", "answers": ["14 December 1972 UTC", …]}: the generated
                 text is right if it equals any of `answers`; `answer` is the one that few-shot examples show
    solution     as number; several answers are generated for an item, and each is right or wrong
    line         {"query": "def f(x):\\n    return", "answer": " x + 1"}: the generated text is right if it equals the rest of the line
    retrieval    as choices, with the place in its grid: see haystack.py
    code         {"query": "def f(x):\\n", "answer": "    return x\\n", "before": "def f(x):\\n", "after": "assert f(1) == 1"}: the program
                 before + text + after ends without an exception if the generated text is right

The files are those of the public data sets, one folder for each data set (docs/benchmarks.md lists them). A `.jsonl.gz` file may also be
present as `.jsonl`, and the reverse.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from itertools import chain, zip_longest
from pathlib import Path
from typing import IO, Any

from freetf_cli.errors import InputError
from freetf_cli.evaluation.benchmarks.evalplus import same_results
from freetf_cli.evaluation.benchmarks.haystack import Room, babilong, needles

Doc = dict[str, Any]
Splits = dict[str, list[Doc]]  # `test` is measured; `shots` are the few-shot examples
LETTERS = "ABCDEFGH"
MMLU_SHOTS = 5


def load(name: str, data: str | None = None, shots: int | None = None, room: Room | None = None, **_: Any) -> Any:
    """The splits of a benchmark, as the `custom_dataset` of its task file. data: the folder that holds all data sets."""
    import datasets

    return {split: datasets.Dataset.from_list(docs) for split, docs in read(name, data, shots, room).items()}


def read(name: str, data: str | Path | None, shots: int | None = None, room: Room | None = None) -> Splits:
    """The splits of a benchmark. InputError names a missing or damaged file.

    shots: few-shot examples in the query, for mmlu only. room: what the model can read, for benchmarks whose prompts are made for it; by
    default 4,096 bytes.
    """
    if data is None:
        raise InputError(f"--task {name} needs the folder of its data set", hint="--data DIR; docs/benchmarks.md lists the files")
    folder = Path(data)
    if not folder.is_dir():
        raise InputError("--data: no such folder", str(folder), "docs/benchmarks.md lists the files")
    try:
        splits = _read(name, folder, shots, room)
    except FileNotFoundError as error:
        raise InputError(f"--data: no file for {name}", str(error.filename), "docs/benchmarks.md lists the files") from None
    except (ValueError, KeyError, IndexError, TypeError, EOFError, tarfile.TarError, OSError) as error:
        raise InputError(f"--data: the file of {name} is not in its form: {type(error).__name__} {error}", str(folder)) from None
    if not any(splits.values()):
        raise InputError(f"--data: the file of {name} has no items", str(folder), "docs/benchmarks.md lists the files")
    return splits


def _read(name: str, folder: Path, shots: int | None, room: Room | None) -> Splits:
    if name in LONG:
        return LONG[name](folder, room or Room())
    return mmlu(folder, MMLU_SHOTS if shots is None else shots) if name == "mmlu" else READERS[name](folder)


def hellaswag(data: Path) -> Splits:
    """Each item has six lines: context, index of the right ending, four endings."""
    with _open(data / "hellaswag" / "hellaswag_val_full.txt.bz2") as file:
        lines = [line.rstrip("\n") for line in file]
    items = [lines[i : i + 6] for i in range(0, len(lines) - len(lines) % 6, 6)]
    return _same([_choice(context, endings, int(gold)) for context, gold, *endings in items])


def winogrande(data: Path) -> Splits:
    """Partial evaluation: the rest of the sentence is scored after each of the two options."""
    rows = _jsonl(data / "winogrande" / "winogrande.jsonl.gz")
    return _same([{"choices": row["context_options"], "continuation": row["continuation"], "gold": row["gold"]} for row in rows])


def arc_easy(data: Path) -> Splits:
    return _arc(data / "arc", "Easy")


def arc_challenge(data: Path) -> Splits:
    return _arc(data / "arc", "Challenge")


def _arc(folder: Path, part: str) -> Splits:
    def docs(split: str) -> list[Doc]:
        return [_nested(row, "Question: {}\nAnswer:") for row in _jsonl(folder / f"ARC-{part}-{split}.jsonl.gz")]

    return {"test": docs("Test"), "shots": docs("Train")}


def openbookqa(data: Path) -> Splits:
    return _same([_choice(row["query"], row["choices"], row["gold"]) for row in _jsonl(data / "openbookqa" / "openbook_qa.jsonl")])


def boolq(data: Path) -> Splits:
    rows = _jsonl(data / "boolq" / "boolq.jsonl.gz")
    return _same([_choice(f"{row['query']}\nAnswer:", row["choices"], row["gold"]) for row in rows])


def piqa(data: Path) -> Splits:
    """The labels are in a separate file."""
    with _open(data / "piqa" / "valid-labels.lst") as file:
        labels = [int(line) for line in file]
    rows = list(_jsonl(data / "piqa" / "valid.jsonl.gz"))
    pairs = zip(rows, labels, strict=True)
    return _same([_choice(f"Question: {row['goal']}\nAnswer:", [row["sol1"], row["sol2"]], gold) for row, gold in pairs])


def commonsenseqa(data: Path) -> Splits:
    """The choices are listed after the question, and the answer is a letter."""

    def docs(split: str) -> list[Doc]:
        docs = [_nested(row, "Question: {}") for row in _jsonl(data / "commonsenseqa" / f"{split}_rand_split.jsonl.gz")]
        return [_lettered(doc["query"], doc["choices"], doc["gold"]) for doc in docs]

    return {"test": docs("dev"), "shots": docs("train")}


def mmlu(data: Path, shots: int) -> Splits:
    """CSV files with a header line, in one archive. The few-shot examples have the question's subject, so they are part of the query.

    The questions are ordered by taking one of each subject in turn, so that a small --limit still covers all subjects.
    """
    subjects: dict[str, dict[str, list[Doc]]] = {"dev": {}, "test": {}}
    with tarfile.open(data / "mmlu" / "mmlu_dev_test.tar.gz") as archive:
        for member in sorted(archive.getnames()):
            split, _, name = member.removeprefix("./").partition("/")
            if split in subjects and name.endswith(f"_{split}.csv") and (file := archive.extractfile(member)):
                rows = csv.DictReader(io.TextIOWrapper(file, encoding="utf-8", newline=""))
                subject = name.removesuffix(f"_{split}.csv")
                subjects[split][subject] = [
                    _lettered(row["question"].strip(), [row[f"choice{i}"] for i in range(4)], int(row["answer"])) for row in rows
                ]
    by_subject = []
    for subject, docs in sorted(subjects["test"].items()):
        head = f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"
        dev = subjects["dev"].get(subject, [])
        if len(dev) < shots:
            raise InputError(f"--fewshot {shots}: mmlu has {len(dev)} examples of {subject}")
        examples = "".join(f"{doc['query']} {doc['choices'][doc['gold']]}\n\n" for doc in dev[:shots])
        by_subject.append([{**doc, "query": head + examples + doc["query"], "subject": subject} for doc in docs])
    return {"test": [doc for doc in chain(*zip_longest(*by_subject)) if doc]}


def lambada(data: Path) -> Splits:
    rows = _jsonl(data / "lambada" / "lambada_openai.jsonl.gz")
    return _same([{"query": row["context"], "answer": row["continuation"]} for row in rows])


def lambada_standard(data: Path) -> Splits:
    """The passages as they were published: a line each, tokenized and in lower case, up to the word to predict."""
    with _open(data / "lambada" / "lambada_test_plain_text.txt.gz") as file:
        parts = [line.strip().rpartition(" ") for line in file if line.strip()]
    return _same([{"query": query, "answer": answer} for query, _, answer in parts])


def gsm8k(data: Path) -> Splits:
    """The answers are worked solutions that end with a line such as `#### 18`."""

    def docs(split: str) -> list[Doc]:
        rows = _jsonl(data / "gsm8k" / f"{split}.jsonl.gz")
        return [_free(f"Question: {row['question']}\nAnswer:", row["answer"], [row["answer"].rpartition("#### ")[2]]) for row in rows]

    return {"test": docs("test"), "shots": docs("train")}


def word_problems(data: Path) -> Splits:
    """Rows of `freetf gen-synthetic word_problems -o -`."""

    def doc(row: Doc) -> Doc:
        question, mark, solution = row["text"].partition("\nAnswer:")
        return _free(question + mark, solution.strip(), [str(row["factors"]["answer"])])

    return _same([doc(row) for row in _jsonl(data / "word_problems" / "word_problems.jsonl.gz")])


def python_lines(data: Path) -> Splits:
    """Rows of `scripts/text_mixture.py lines`."""
    rows = _jsonl(data / "python_lines" / "python_lines.jsonl.gz")
    return _same([{"query": row["context"], "answer": row["line"]} for row in rows])


def nq_open(data: Path) -> Splits:
    def docs(name: str) -> list[Doc]:
        rows = _jsonl(data / "nq_open" / name)
        return [_free(f"Question: {row['question'].removesuffix('?')}?\nAnswer:", row["answer"][0], row["answer"]) for row in rows]

    return {"test": docs("NQ-open.dev.jsonl.gz"), "shots": docs("NQ-open.efficientqa.dev.1.1.jsonl")}


def triviaqa(data: Path) -> Splits:
    rows = _jsonl(data / "triviaqa" / "triviaqa_sm_sub.jsonl.gz")
    return _same([_free(row["context"], row["answer"], [row["answer"], *row["aliases"]]) for row in rows])


def humaneval(data: Path) -> Splits:
    def doc(row: Doc) -> Doc:
        return _code(row["prompt"], row["canonical_solution"], row["prompt"], f"\n{row['test']}\ncheck({row['entry_point']})\n")

    return _same([doc(row) for row in _jsonl(data / "humaneval" / "HumanEval.jsonl.gz")])


def humaneval_plus(data: Path) -> Splits:

    def doc(row: Doc) -> Doc:
        after = same_results(row, row["prompt"] + row["canonical_solution"])
        return _code(row["prompt"], row["canonical_solution"], row["prompt"], after)

    return _same([doc(row) for row in _jsonl(data / "humanevalplus" / "HumanEvalPlus.jsonl.gz")])


def mbpp(data: Path) -> Splits:
    """Tasks 11 to 510 are the test split, 2 to 10 the few-shot examples. The prompt is the one in the data set's paper."""

    def doc(row: Doc) -> Doc:
        tests = "\n".join(row["test_list"])
        asked = f"You are an expert Python programmer, and here is your task: {row['text']} Your code should pass these tests:"
        return _code(f"{asked}\n\n{tests}\n[BEGIN]\n", f"{row['code']}\n[DONE]", "", f"\n{row['test_setup_code']}\n{tests}\n")

    rows = list(_jsonl(data / "mbpp" / "mbpp.jsonl.gz"))
    return {
        split: [doc(row) for row in rows if row["task_id"] in ids] for split, ids in (("test", range(11, 511)), ("shots", range(2, 11)))
    }


def mbpp_plus(data: Path) -> Splits:
    """MBPP's own assertions are among EvalPlus's inputs (`base_input`)."""

    def doc(row: Doc) -> Doc:
        return _code(row["prompt"], row["canonical_solution"], "", same_results(row, row["canonical_solution"]))

    return _same([doc(row) for row in _jsonl(data / "mbppplus" / "MbppPlus.jsonl.gz")])


def _code(query: str, answer: str, before: str, after: str) -> Doc:
    return {"query": query, "answer": answer, "before": before, "after": after}


def _free(query: str, answer: str, answers: list[str]) -> Doc:
    return {"query": query, "answer": answer, "answers": list(dict.fromkeys(answers))}


def _choice(query: str, choices: list[str], gold: int) -> Doc:
    return {"query": query, "choices": list(choices), "gold": gold}


def _nested(row: Doc, query: str) -> Doc:
    """A row of ARC or CommonsenseQA. Labels are letters or digits and rows have three to five choices, so the key is looked up."""
    choices = row["question"]["choices"]
    gold = [choice["label"] for choice in choices].index(row["answerKey"])
    return _choice(query.format(row["question"]["stem"]), [choice["text"] for choice in choices], gold)


def _lettered(question: str, choices: list[str], gold: int) -> Doc:
    lines = [question, *(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False)), "Answer:"]
    return _choice("\n".join(lines), list(LETTERS[: len(choices)]), gold)


def _same(docs: list[Doc]) -> Splits:
    """A data set with one split. Few-shot examples are other items of it; lm-eval never uses the tested item as its own example."""
    return {"test": docs}


def _jsonl(path: Path) -> Iterator[Doc]:
    with _open(path) as file:
        yield from (json.loads(line) for line in file if line.strip())


def _open(path: Path) -> IO[str]:
    """Open a text file, decompressing it according to its suffix. If it is missing, the same file with or without `.gz` is tried."""
    twin = path.with_suffix("") if path.suffix == ".gz" else path.with_name(f"{path.name}.gz")
    if not path.exists() and twin.exists():
        path = twin
    kinds: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open}
    opened: IO[str] = kinds.get(path.suffix, open)(path, "rt", encoding="utf-8")
    return opened


LONG: dict[str, Callable[[Path, Room], Splits]] = {"needles": needles, "babilong": babilong}
READERS: dict[str, Callable[[Path], Splits]] = {
    function.__name__: function
    for function in (
        hellaswag,
        winogrande,
        arc_easy,
        arc_challenge,
        openbookqa,
        boolq,
        piqa,
        commonsenseqa,
        lambada,
        lambada_standard,
        gsm8k,
        nq_open,
        triviaqa,
        humaneval,
        humaneval_plus,
        mbpp,
        mbpp_plus,
        word_problems,
        python_lines,
    )
}
