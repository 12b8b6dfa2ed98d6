"""Measures a benchmark through lm-eval's `evaluate`, which seeds no global generator (`simple_evaluate` does by default)."""

from __future__ import annotations

import difflib
import functools
import json
import logging
import math
import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from freetf_cli.errors import FreetfError, InputError, nearest
from freetf_cli.evaluation import Stage
from freetf_cli.evaluation.benchmarks import ATTEMPTED, BENCHMARKS, FOREIGN, TASKS, Benchmark, metrics, sandbox
from freetf_cli.evaluation.metrics import metric_names
from freetf_cli.records.benchmarks import Score
from freetf_cli.records.likelihood import Estimate

Item = dict[str, Any]


@dataclass(frozen=True)
class Questions:
    """What to ask the model.

    data: the folder that holds the data sets. limit: the largest number of items per benchmark; None takes all. shots: the number of
    few-shot examples; None takes the task's default.
    """

    data: str | None = None
    limit: int | None = None
    shots: int | None = None
    seed: int = 0  # for choosing the few-shot examples
    attempts: int = 1  # answers to generate for each item of a benchmark with pass@k
    allow_code: bool = False  # whether generated programs may run


def require_lm_eval() -> None:
    """Raise FreetfError unless lm-eval is installed."""
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        raise FreetfError("benchmarks need lm-eval, which is not installed", hint="pip install 'freetf[eval]'") from None


def check_allowed(name: str, asked: Questions) -> None:
    """Raise InputError for a benchmark that runs generated code, unless that is allowed."""
    if runs_code(name) and not asked.allow_code:
        raise InputError(
            f"--task {name} runs the code that the model writes",
            hint="--allow-code-execution permits it; docs/benchmarks.md explains the sandbox",
        )


def runs_code(name: str) -> bool:
    """Whether a benchmark of freetf runs generated code."""
    return name in BENCHMARKS and BENCHMARKS[name].kind == "code"


def measure(lm: Any, name: str, asked: Questions, stage: Stage) -> tuple[list[Score], list[Item]]:
    """The scores of a benchmark, or of each task in an lm-eval group, and all items. lm: a `RunLM` or any other lm-eval model."""
    own = BENCHMARKS.get(name)
    check_allowed(name, asked)
    from lm_eval.evaluator import evaluate

    started = time.perf_counter()
    cut: set[str] = getattr(lm, "truncated", set())
    cut.clear()
    lm.task = name
    with contained():
        loaded = load(name, asked, lm)
        for task in loaded["tasks"].values():
            _set_shots(task, asked)
            if own is not None and own.kind in ATTEMPTED:
                task.set_config(key="repeats", value=asked.attempts)
        try:
            found = evaluate(lm, loaded, limit=asked.limit, bootstrap_iters=0, log_samples=True, confirm_run_unsafe_code=own is not None)
        except ValueError as error:
            if "unsafe" not in str(error):
                raise
            raise InputError(f"lm-eval would run generated code of {name} without a sandbox", hint="humaneval and mbpp have one") from None
    shots = {task: int(one.get_config("num_fewshot") or 0) for task, one in loaded["tasks"].items()}
    if own is not None:
        shots[name] = _shown(own, asked, shots[name])
    items = [_item(task, sample, cut, shots[task]) for task, samples in found["samples"].items() for sample in samples]
    if own is not None:
        if own.metric == "acc_completion":
            _ask_alone(lm, items)
        score_items(own, items, stage)
        return [score(own, items, shots[name], time.perf_counter() - started)], items
    seconds = (time.perf_counter() - started) / len(shots)
    parts = [_foreign(task, found, shots[name], seconds) for name, task in loaded["tasks"].items()]
    return parts, items


def load(name: str, asked: Questions, lm: Any = None) -> Any:
    """The lm-eval tasks that a name stands for. lm: a `RunLM`, for which long prompts are made. InputError for an unknown name."""
    from lm_eval.tasks import TaskManager

    about = {"data": asked.data, "shots": asked.shots, "room": getattr(lm, "room", None)}
    if name in BENCHMARKS:
        return TaskManager(include_path=str(TASKS), include_defaults=False, metadata=about).load([name])
    manager, foreign = TaskManager(metadata={}), name.removeprefix(FOREIGN)
    if foreign not in manager.all_tasks:
        raise InputError(f"there is no task '{name}'", hint=nearest(foreign, [*BENCHMARKS, *manager.all_tasks]))
    try:
        return manager.load([foreign])
    except (OSError, ConnectionError) as error:
        where = "lm-eval loads its data from the network"
        raise FreetfError(f"the data of lm-eval's task {foreign} cannot be loaded: {error}", hint=where) from None


def check_name(name: str) -> None:
    """Raise InputError for a likely misspelling of a freetf name, since lm-eval needs seconds to look a name up among its 14,000 tasks."""
    if near := difflib.get_close_matches(name, [*BENCHMARKS, *metric_names()], n=1, cutoff=0.85):
        raise InputError(f"there is no task '{name}'", hint=f"did you mean '{near[0]}'? {FOREIGN}{name} asks lm-eval for its own")


def _set_shots(task: Any, asked: Questions) -> None:
    """Set the number of few-shot examples, unless the task file fixes it at 0, and the seed for choosing them."""
    fixed = task.get_config("num_fewshot")
    shots = (asked.shots if asked.shots is not None and fixed != 0 else fixed) or 0
    task.set_config(key="num_fewshot", value=shots)
    task.set_fewshot_seed(seed=asked.seed)
    there = len(task.fewshot_docs() or ()) if shots else 0
    if there < shots:
        raise InputError(f"--fewshot {shots}: {task.task_name} has {there} examples")


def _shown(benchmark: Benchmark, asked: Questions, shots: int) -> int:
    """The number of few-shot examples shown. lm-eval knows of none for mmlu, where they are part of the query."""
    from freetf_cli.evaluation.benchmarks.documents import MMLU_SHOTS

    return (MMLU_SHOTS if asked.shots is None else asked.shots) if benchmark.name == "mmlu" else shots


def score_items(benchmark: Benchmark, items: Sequence[Item], stage: Stage) -> None:
    """Set the scores of items from their documents and answers. Generated programs are run, one per CPU core at a time."""
    if benchmark.kind == "code":
        limits = sandbox.Limits(seconds=benchmark.seconds)
        programs = [item["doc"]["before"] + answer + item["doc"]["after"] for item in items for answer in item["answers"]]
        with stage("running code", len(programs)) as advance, ThreadPoolExecutor(os.cpu_count()) as pool:
            outcomes = []
            for outcome in pool.map(lambda program: sandbox.run(program, limits), programs):
                outcomes.append(outcome)
                advance(1)
        ended = iter(outcomes)
        for item in items:
            item["outcomes"] = [next(ended) for _ in item["answers"]]
    for item in items:
        item["scores"] = metrics.KINDS[benchmark.kind](item["doc"], item["outcomes"] if "outcomes" in item else item["answers"])


def score(benchmark: Benchmark, items: Sequence[Item], shots: int, seconds: float) -> Score:
    """The averages of the items' scores."""
    docs = [item["doc"] for item in items]
    errors = [
        answer["stderr"] for item in items for answer in item["answers"] if isinstance(answer, Mapping) and answer.get("stderr") is not None
    ]
    return Score(
        benchmark.name,
        benchmark.metric,
        len(items),
        shots,
        metrics.summarise(docs, [item["scores"] for item in items], benchmark.macro),
        metrics.chance(docs, benchmark.macro),
        sum(item["truncated"] for item in items),
        sum(errors) / len(errors) if errors else None,
        seconds,
        metrics.grids(docs, [item["scores"] for item in items], benchmark),
    )


def _item(task: str, sample: Mapping[str, Any], truncated: Set[str], shots: int) -> Item:
    """The part of an lm-eval sample that scoring needs, as a JSON object."""
    from freetf_cli.evaluation.benchmarks.adapter import records

    found = sample["filtered_resps"]
    if len(found) == 1 and isinstance(found[0], list):  # all attempts at a program
        found = found[0]
    answers = records(found)
    scores = {name: sample[name] for name in sample["metrics"]}
    prompts = [arguments[0] for arguments in sample["arguments"]]
    asked = {"task": task, "item": sample["doc_id"], "doc": sample["doc"], "prompt": prompts[0], "shots": shots}
    return {**asked, "truncated": any(prompt in truncated for prompt in prompts), "answers": answers, "scores": scores}


def _ask_alone(lm: Any, items: Sequence[Item]) -> None:
    """Add to each answer its log-likelihood after "Answer:" alone (`alone`), by which acc_completion normalises."""
    from lm_eval.api.instance import Instance

    texts = list(dict.fromkeys(text for item in items for text in item["doc"]["choices"]))
    asked = [Instance("loglikelihood", {}, ("Answer:", f" {text}"), number) for number, text in enumerate(texts)]
    found = {text: answer[0] for text, answer in zip(texts, lm.loglikelihood(asked), strict=True)}
    for item in items:
        item["answers"] = [{**answer, "alone": found[text]} for answer, text in zip(item["answers"], item["doc"]["choices"], strict=True)]


def _foreign(task: Any, found: Mapping[str, Any], shots: int, seconds: float) -> Score:
    """The scores of one of lm-eval's own tasks: its aggregates, with an interval where an aggregate is the mean over items."""
    samples = found["samples"][task.task_name]
    scores = {}
    for name, value in found["results"][task.task_name].items():
        metric, _, _ = name.partition(",")
        values = [sample.get(metric) for sample in samples]
        if metric in task.aggregation() and isinstance(value, int | float) and not math.isnan(value):
            plain = all(isinstance(one, int | float) for one in values)
            mean = metrics.average([float(one) for one in values]) if plain else None
            is_mean = mean is not None and math.isclose(mean.value, value)
            scores[metric] = mean if mean is not None and is_mean else Estimate(float(value), math.nan, math.nan)
    return Score(task.task_name, next(iter(scores), ""), len(samples), shots, scores, None, 0, None, seconds)


@contextmanager
def contained() -> Iterator[None]:
    """Silences lm-eval's logging and progress bars, and restores the state of Python's random generator afterwards.

    The command shows its own progress. For each task lm-eval draws a name from the global generator and never uses it.
    """
    import tqdm

    drawn = random.getstate()
    logger, begin = logging.getLogger("lm_eval"), tqdm.tqdm.__init__
    level = logger.level
    logger.setLevel(logging.ERROR)
    setattr(tqdm.tqdm, "__init__", functools.partialmethod(begin, disable=True))  # noqa: B010 (mypy knows no types of tqdm)
    try:
        yield
    finally:
        setattr(tqdm.tqdm, "__init__", begin)  # noqa: B010
        random.setstate(drawn)
        logger.setLevel(level)


def to_lines(items: Sequence[Item]) -> str:
    """Items as JSONL."""
    return "".join(json.dumps({"schema_version": 1, **item}, ensure_ascii=False, default=str) + "\n" for item in items)
