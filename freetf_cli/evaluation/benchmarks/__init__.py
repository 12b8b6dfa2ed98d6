"""Benchmarks of `freetf evaluate --task NAME`, run by lm-eval (the extra `eval`) over the task files in `tasks/`.

    documents.py   reads the data files into documents for lm-eval
    tasks/*.yaml   the prompt and the request type of each benchmark, as lm-eval task files
    scoring.py     log-likelihoods of answers; those of a Free model are averaged over draws of Z
    haystack.py    makes long prompts: needles and babilong
    generating.py  generated answers
    adapter.py     wraps a run as an lm-eval model
    answers.py     saves the answers, so that an interrupted evaluation can be resumed
    metrics.py     the scores of an item, as pure functions of its document and the model's answers
    evalplus.py    the tests of HumanEval+ and MBPP+, as code that runs after a program
    sandbox.py     runs generated code
    measure.py     one benchmark: asks lm-eval and scores the items
    run.py         all benchmarks of one or several checkpoints
    rescore.py     computes scores again from saved items
    minimum.py     the least scores that --min asks for
    tables.py      scores beside the figures of the paper's tables

This module imports nothing heavy, because help and completion list the names.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

TASKS = Path(__file__).parent / "tasks"
FOREIGN = "lm-eval:"  # prefix that selects lm-eval's own task where freetf has one of the same name


@dataclass(frozen=True)
class Benchmark:
    """A benchmark with a task file. paper: its name in the paper's tables; kind: how its items are scored, a key of `metrics.KINDS`.

    grid: document fields by which scores are also shown: a table for each value of the first, then rows, then columns; or rows and columns.
    """

    name: str
    paper: str
    kind: str
    metric: str  # the one that the paper reports
    macro: str = ""  # macro average over groups of items with the same value of this document field; empty: a plain mean over items
    seconds: float = 10.0  # time-out of a generated program, for kind "code"
    grid: tuple[str, ...] = ()
    in_all: bool = True  # whether `--task all` includes it; not if its files must be made first


ATTEMPTED = {"code", "solution", "line"}  # kinds with several generated answers an item, for pass@k
BENCHMARKS = {
    one.name: one
    for one in (
        Benchmark("humaneval", "", "code", "pass@1"),
        Benchmark("humaneval_plus", "human_eval_plus", "code", "pass@1", seconds=30.0),
        Benchmark("mbpp", "mbpp", "code", "pass@1"),
        Benchmark("mbpp_plus", "", "code", "pass@1", seconds=30.0),
        Benchmark("gsm8k", "gsm8k", "number", "em"),
        Benchmark("mmlu", "mmlu", "choices", "acc_char", macro="subject"),
        Benchmark("commonsenseqa", "csqa", "choices", "acc_char"),
        Benchmark("hellaswag", "hellaswag", "choices", "acc_char"),
        Benchmark("winogrande", "winogrande", "choices", "acc_char"),
        Benchmark("openbookqa", "obqa", "choices", "acc_completion"),
        Benchmark("arc_challenge", "arc_challenge", "choices", "acc_completion"),
        Benchmark("arc_easy", "arc_easy", "choices", "acc_completion"),
        Benchmark("piqa", "piqa", "choices", "acc_char"),
        Benchmark("boolq", "boolq", "choices", "acc_completion"),
        Benchmark("nq_open", "nq", "em", "em"),
        Benchmark("triviaqa", "tqa", "em", "em"),
        Benchmark("lambada", "", "last_word", "acc"),
        Benchmark("lambada_standard", "", "last_word", "acc", in_all=False),
        Benchmark("needles", "", "retrieval", "acc", grid=("needles", "haystack", "depth", "length"), in_all=False),
        Benchmark("babilong", "", "retrieval", "acc", grid=("question", "length"), in_all=False),
        Benchmark("word_problems", "", "solution", "pass@1", in_all=False),
        Benchmark("python_lines", "", "line", "pass@1", in_all=False),
    )
}
