"""Benchmarks of `freetf evaluate --task NAME`, run by lm-eval (the extra `eval`) over the task files in `tasks/`.

    documents.py   reads the data files into lm-eval's documents
    tasks/*.yaml   prompt and kind of each benchmark, in lm-eval's form
    scoring.py     log-likelihoods of answers, of a Free model averaged over draws of Z
    adapter.py     a run as a model of lm-eval
    metrics.py     the scores of an item, as pure functions of its document and the model's answers
    measure.py     runs benchmarks, and writes their items

This module imports nothing heavy: help and completion list the names.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

TASKS = Path(__file__).parent / "tasks"
FOREIGN = "lm-eval:"  # prefix of a task of lm-eval's own whose name is also one of ours


@dataclass(frozen=True)
class Benchmark:
    """A benchmark with a task file. paper: its name in the paper's tables; kind: which function of metrics.py scores an item."""

    name: str
    paper: str
    kind: str
    metric: str  # the one that the paper reports
    macro: str = ""  # the field of a document whose values' scores are averaged; empty: all items count alike


BENCHMARKS = {
    one.name: one
    for one in (
        Benchmark("humaneval", "", "code", "pass@1"),
        Benchmark("humaneval_plus", "human_eval_plus", "code", "pass@1"),
        Benchmark("mbpp", "mbpp", "code", "pass@1"),
        Benchmark("mbpp_plus", "", "code", "pass@1"),
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
    )
}
