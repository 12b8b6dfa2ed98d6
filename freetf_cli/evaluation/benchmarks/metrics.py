"""The scores of benchmark items, named as in the paper's Appendix B. An item is a document with the model's answers.

    acc             the answer with the largest log-likelihood is the right one
    acc_char        the same, with each log-likelihood divided by the answer's characters
    acc_token       the same, with each log-likelihood divided by the answer's tokens
    acc_completion  the same, with the answer's log-likelihood after "Answer:" alone subtracted from each log-likelihood
    em              the generated answer equals a right answer, ignoring case, punctuation and articles; for GSM8K, the final number
    nll             the last word's negative log-likelihood in nats; perplexity is the exponential of its mean
    pass@k          at least one of k generated programs, solutions or lines is right, estimated from n ≥ k of them
    macro average   the mean over the groups of items (MMLU's subjects) of the mean in each group

acc_completion is our reading of the paper, which does not define it (docs/benchmarks.md has the reasons): Brown et al. (arXiv 2005.14165,
§2.4) normalise by P(answer | "Answer:") on ARC and OpenBookQA, and LLaMA (arXiv 2302.13971, §3) on OpenBookQA and BoolQ, so that an answer
that is likely anywhere has no advantage.

None of them is comparable to `acc_norm` of lm-eval's own tasks, which also divides by characters but uses other prompts and answers.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from freetf_cli.evaluation.benchmarks import Benchmark
from freetf_cli.evaluation.benchmarks.sandbox import PASSED
from freetf_cli.evaluation.statistics import LEAST, RESAMPLES, bootstrap, interval, wilson
from freetf_cli.records.benchmarks import ScoreGrid
from freetf_cli.records.likelihood import Estimate

Scores = dict[str, float]


def choices(doc: Mapping[str, Any], answers: Sequence[Mapping[str, Any]]) -> Scores:
    """Scores of a multiple-choice item. Ties go to the first choice."""
    logs = [answer["loglikelihood"] for answer in answers]
    texts = [doc["continuation"]] * len(logs) if "continuation" in doc else doc["choices"]
    values = {"acc": logs, "acc_char": _divided(logs, [len(text) for text in texts])}
    if all("tokens" in answer for answer in answers):  # other lm-eval models do not report it
        values["acc_token"] = _divided(logs, [answer["tokens"] for answer in answers])
    if all("alone" in answer for answer in answers):  # asked only where the paper reports acc_completion
        values["acc_completion"] = [answer["loglikelihood"] - answer["alone"] for answer in answers]
    return {name: float(each.index(max(each)) == doc["gold"]) for name, each in values.items()}


def _divided(logs: Sequence[float], sizes: Sequence[int]) -> list[float]:
    return [log / max(size, 1) for log, size in zip(logs, sizes, strict=True)]


def last_word(doc: Mapping[str, Any], answers: Sequence[Mapping[str, Any]]) -> Scores:
    """Whether greedy decoding gives the last word, and its negative log-likelihood in nats."""
    return {"acc": float(answers[0]["greedy"]), "nll": -float(answers[0]["loglikelihood"])}


def retrieval(doc: Mapping[str, Any], answers: Sequence[Mapping[str, Any]]) -> Scores:
    """Whether the right answer has the largest log-likelihood of those in question, and whether greedy decoding gives it."""
    return {"acc": choices(doc, answers)["acc"], "em": float(answers[doc["gold"]]["greedy"])}


def em(doc: Mapping[str, Any], answers: Sequence[str]) -> Scores:
    """Exact match of the first generated line with any right answer, normalised as in SQuAD's evaluation script."""
    return {"em": float(_plain(answers[0].strip().partition("\n")[0]) in {_plain(one) for one in doc["answers"]})}


def _plain(text: str) -> str:
    """The text in lower case, without punctuation, articles and repeated spaces."""
    letters = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", letters).split())


def number(doc: Mapping[str, Any], answers: Sequence[str]) -> Scores:
    """Exact match of the number after the first `####`, as in the few-shot examples. A text without `####` is wrong."""
    return {"em": float(_has_number(answers[0], doc["answers"][0]))}


def _has_number(text: str, right: str) -> bool:
    found = re.search(r"####\s*\$?(-?[\d.,]*\d)", text)
    return found is not None and found[1].replace(",", "") == right.replace(",", "")


def solution(doc: Mapping[str, Any], answers: Sequence[str]) -> Scores:
    """pass@k of solutions; each is right if the number after its first `####` is."""
    return passes([_has_number(text, doc["answers"][0]) for text in answers])


def line(doc: Mapping[str, Any], answers: Sequence[str]) -> Scores:
    """pass@k of lines; each is right if its text up to the end of the line is the true one, except for spaces at its end."""
    return passes([text.partition("\n")[0].rstrip() == doc["answer"].rstrip() for text in answers])


def code(doc: Mapping[str, Any], outcomes: Sequence[str]) -> Scores:
    """pass@k of programs. outcomes: how each of them ended (sandbox.py)."""
    return passes([outcome == PASSED for outcome in outcomes])


def passes(each: Sequence[bool]) -> Scores:
    """pass@1, and for n > 1 answers pass@n, pass@10 and pass@100 (if k < n), from which of them are right."""
    count, right = len(each), sum(each)
    ks = sorted({1, count, *(k for k in (10, 100) if k < count)})
    return {f"pass@{k}": pass_at_k(count, right, k) for k in ks}


def pass_at_k(count: int, right: int, k: int) -> float:
    """The probability that k of `count` programs, drawn without replacement, include a right one: 1 − C(n − c, k) / C(n, k).

    Unbiased for k new programs (Chen et al., arXiv 2107.03374, equation 1).
    """
    return 1.0 - math.comb(count - right, k) / math.comb(count, k)


# The scoring function for each `Benchmark.kind`. That of code gets the outcomes of the programs in place of the answers.
KINDS: dict[str, Callable[[Mapping[str, Any], Sequence[Any]], Scores]] = {
    "choices": choices,
    "retrieval": retrieval,
    "last_word": last_word,
    "em": em,
    "number": number,
    "solution": solution,
    "line": line,
    "code": code,
}


def chance(docs: Sequence[Mapping[str, Any]], macro: str) -> float | None:
    """The score of guessing among the choices; None where the answer is free text."""
    if not docs or "choices" not in docs[0]:
        return None
    return average([1 / len(doc["choices"]) for doc in docs], _groups(docs, macro)).value


def summarise(docs: Sequence[Mapping[str, Any]], scores: Sequence[Scores], macro: str) -> dict[str, Estimate]:
    """The average of each score over items with its 95 % interval, and the perplexity where items have an nll. macro: see `Benchmark`."""
    groups = _groups(docs, macro)
    found = {name: average([one[name] for one in scores], groups) for name in scores[0]} if scores else {}
    if "nll" in found:
        nll = found["nll"]
        found["perplexity"] = Estimate(*(float(np.exp(np.float64(end))) for end in (nll.value, nll.low, nll.high)))
    return found


def grids(docs: Sequence[Mapping[str, Any]], scores: Sequence[Scores], benchmark: Benchmark) -> list[ScoreGrid]:
    """The score of each cell of the benchmark's grid (`Benchmark.grid`), such as depth by length, rows and columns sorted."""
    if not benchmark.grid or not docs:
        return []
    *above, row, column = benchmark.grid
    found = []
    for values in sorted({tuple(doc[name] for name in above) for doc in docs}):
        part = [(doc, one) for doc, one in zip(docs, scores, strict=True) if tuple(doc[name] for name in above) == values]
        rows, columns = (sorted({doc[name] for doc, _ in part}) for name in (row, column))
        cells = {(r, c): [one[benchmark.metric] for doc, one in part if (doc[row], doc[column]) == (r, c)] for r in rows for c in columns}
        found.append(
            ScoreGrid(
                title=", ".join(f"{value} {name}" for name, value in zip(above, values, strict=True)),
                row=row,
                column=column,
                rows=[str(one) for one in rows],
                columns=[str(one) for one in columns],
                scores=[[average(cells[r, c]) if cells[r, c] else None for c in columns] for r in rows],
                chance=[chance([doc for doc, _ in part if doc[row] == r], "") for r in rows],
            )
        )
    return found


def _groups(docs: Sequence[Mapping[str, Any]], macro: str) -> list[str] | None:
    return [str(doc[macro]) for doc in docs] if macro else None


def average(values: Sequence[float], groups: Sequence[str] | None = None) -> Estimate:
    """The mean with its 95 % interval: Wilson's if all values are 0 or 1, otherwise a bootstrap, or NaN with fewer than LEAST items.

    groups: the group of each item, for the macro average.
    """
    if groups is not None:
        return macro_average(values, groups)
    if set(values) <= {0.0, 1.0}:
        return wilson(sum(values), len(values))
    mean = float(np.mean(values))
    return bootstrap(values) if len(values) >= LEAST else Estimate(mean, float("nan"), float("nan"))


def macro_average(values: Sequence[float], groups: Sequence[str], seed: int = 0) -> Estimate:
    """The mean over groups of the mean in each, with its 95 % interval from a bootstrap within the groups.

    A group of one item would not vary under resampling, so if there is one, items are resampled regardless of their group. With fewer than
    LEAST items the interval is NaN.
    """
    array, names, sizes = np.asarray(values, np.float64), np.asarray(groups), Counter(groups)
    if max(sizes.values()) == 1:
        return average(values)
    parts = [array[names == name] for name in sorted(sizes)]
    value = float(np.mean([part.mean() for part in parts]))
    if len(array) < LEAST:
        return Estimate(value, float("nan"), float("nan"))
    if min(sizes.values()) == 1:
        weights = 1 / np.array([sizes[name] for name in groups])
        return bootstrap(array * weights, weights, seed=seed)
    rng = np.random.default_rng(seed)
    resampled = [rng.multinomial(len(part), np.full(len(part), 1 / len(part)), size=RESAMPLES) @ part / len(part) for part in parts]
    return interval(value, np.mean(resampled, axis=0))
