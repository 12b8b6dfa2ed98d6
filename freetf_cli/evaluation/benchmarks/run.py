"""Measures benchmarks on one or several checkpoints of a run, and writes the results.

With several checkpoints (§4.5: the mean over the last third of the training) an item's score is its mean over them. Each checkpoint then
has a folder of its own in FOLDER, which otherwise holds all of

    FOLDER/settings.json    the model and the settings; --resume refuses to continue under others
    FOLDER/answers.jsonl    the model's answers, appended after each batch
    FOLDER/TASK.jsonl       the items of a finished benchmark: document, prompt, answers, scores
    FOLDER/result.json      all scores, written at the end (always in FOLDER itself)
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from freetf_cli.durable import read_small, write_durably
from freetf_cli.errors import InputError
from freetf_cli.evaluation import Stage
from freetf_cli.evaluation.benchmarks import BENCHMARKS, FOREIGN, metrics
from freetf_cli.evaluation.benchmarks.answers import Answers
from freetf_cli.evaluation.benchmarks.measure import Item, Questions, check_allowed, check_name, measure, require_lm_eval, to_lines
from freetf_cli.evaluation.benchmarks.scoring import DRAWS, Scorer, ZSource
from freetf_cli.model.decoder import Decoder
from freetf_cli.records import to_json
from freetf_cli.records.benchmarks import Benchmarks, Score
from freetf_cli.runs.checkpoint import Checkpoint, checkpoint_folders, folder_step

SETTINGS, ANSWERS, RESULT = "settings.json", "answers.jsonl", "result.json"

Found = tuple[list[Score], list[Item]]  # the scores of a benchmark, and its items


@dataclass(frozen=True)
class BenchmarkRequest:
    """What to measure and how.

    z, draws: source and number of draws of Z, for a Free model. temperature: of generated text; None uses each task's. folder: where items
    are written; None writes nothing. resume: continue if the folder has answers of the same model. several: there are several checkpoints,
    each with its own subfolder.
    """

    run: str
    tasks: tuple[str, ...]
    questions: Questions
    z: ZSource = "posterior-prompt"
    draws: int = DRAWS
    temperature: float | None = None
    folder: Path | None = None
    resume: bool = False
    several: bool = False

    def settings(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Everything that an answer depends on except the request itself."""
        drawn = {"seed": self.questions.seed, "z": self.z, "draws": self.draws, "temperature": self.temperature}
        return {"checkpoint": checkpoint.weights_sha256, **drawn}


def last_third(run: Path) -> list[Path]:
    """The checkpoints from two thirds of a run's last step on. InputError if the run has none."""
    folders = checkpoint_folders(run)
    if not folders:
        raise InputError("--checkpoints last-third needs a run with checkpoints", str(run))
    return [folder for folder in folders if 3 * folder_step(folder) >= 2 * folder_step(folders[-1])]


def run_benchmarks(opened: Iterable[tuple[Checkpoint, Decoder]], request: BenchmarkRequest, stage: Stage) -> Benchmarks:
    """The scores of all benchmarks, averaged if there are several checkpoints.

    opened: the checkpoints with their models, in training order; a lazy iterable keeps one model in memory at a time, and opens none before
    the names are checked. InputError for an unknown name, missing data, or a folder of another evaluation.
    """
    for name in request.tasks:
        check_allowed(name, request.questions)
        if name not in BENCHMARKS:
            if request.several:  # its aggregates need not be means over items
                what = f"--checkpoints last-third: {name} is a task of lm-eval's own"
                raise InputError(what, hint="measure its checkpoints one by one")
            check_name(name)
    require_lm_eval()
    steps: list[int] = []
    by_task: dict[str, list[Found]] = {}
    for checkpoint, model in opened:
        folder = request.folder
        if folder is not None and request.several:
            folder /= checkpoint.folder.name
        steps.append(checkpoint.step)
        for name, found in _measure(checkpoint, model, replace(request, folder=folder), stage):
            by_task.setdefault(name, []).append(found)
    free = model.latent is not None
    result = Benchmarks(
        run=request.run,
        kind=checkpoint.recipe.kind,
        steps=steps,
        z=request.z if free else None,
        draws=request.draws if free else 1,
        seed=request.questions.seed,
        limit=request.questions.limit,
        tasks=[score for found in by_task.values() for score in mean_scores(found)],
        folder=None if request.folder is None else str(request.folder),
    )
    if request.folder is not None:
        write_durably(request.folder / RESULT, to_json(result) + "\n")
    return result


def _measure(checkpoint: Checkpoint, model: Decoder, request: BenchmarkRequest, stage: Stage) -> Iterator[tuple[str, Found]]:
    """Yield the name, scores and items of each benchmark, for one checkpoint."""
    from freetf_cli.evaluation.benchmarks.adapter import RunLM

    if request.questions.attempts > 1 and model.latent is None and not request.temperature:
        raise InputError("--attempts: all answers of a baseline are the same without a temperature", hint="--temperature 0.8")
    folder = request.folder
    answers = Answers() if folder is None else _open(folder, request, checkpoint)
    scorer = Scorer(model, z=request.z, draws=request.draws, seed=request.questions.seed)
    lm = RunLM(scorer, checkpoint.tokenizer(), answers, stage, request.temperature)
    try:
        for name in request.tasks:
            scores, items = measure(lm, name, request.questions, stage)
            if folder is not None:
                write_durably(folder / f"{name.removeprefix(FOREIGN)}.jsonl", to_lines(items))
            yield name, (scores, items)
    finally:
        answers.close()


def mean_scores(found: Sequence[Found]) -> list[Score]:
    """The scores of one checkpoint, or the means over several, which have the same items of one of freetf's benchmarks."""
    last, items = found[-1]
    if len(found) == 1:
        return last
    docs = [item["doc"] for item in items]
    each = [[checkpoint[number]["scores"] for _, checkpoint in found] for number in range(len(items))]
    means = [{name: sum(one[name] for one in scores) / len(scores) for name in scores[0]} for scores in each]
    errors = [scores[0].stderr for scores, _ in found]
    benchmark = BENCHMARKS[last[0].task]
    return [
        replace(
            last[0],
            scores=metrics.summarise(docs, means, benchmark.macro),
            grids=metrics.grids(docs, means, benchmark),
            stderr=None if None in errors else sum(error for error in errors if error is not None) / len(errors),
            seconds=sum(scores[0].seconds for scores, _ in found),
        )
    ]


def _open(folder: Path, request: BenchmarkRequest, checkpoint: Checkpoint) -> Answers:
    """The answers in the folder, which is created if needed. InputError if it holds answers of another model or under other settings."""
    settings, file = request.settings(checkpoint), folder / SETTINGS
    if folder.exists() and not folder.is_dir():
        raise InputError("-o: not a folder", str(folder))
    if file.is_file():
        if not request.resume:
            raise InputError("the folder has an evaluation", str(folder), "go on with it with --resume, or choose another -o")
        _compare(_read(file), settings, folder)
    elif folder.is_dir() and any(folder.iterdir()):
        raise InputError("the folder is not empty, and has no evaluation", str(folder), "choose another -o")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        about = {"run": request.run, "kind": checkpoint.recipe.kind, "step": checkpoint.step}
        write_durably(file, json.dumps({**about, **settings}, indent=1) + "\n")
    return Answers(folder / ANSWERS)


def _read(file: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(read_small(file))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InputError("the settings of the evaluation are damaged", str(file), "choose another -o")
    return found


def _compare(was: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Raise InputError if the folder's answers come from another model or other settings."""
    differing = [f"{name} was {was.get(name)}, not {now[name]}" for name in now if was.get(name) != now[name]]
    if differing:
        raise InputError(f"--resume: the evaluation differs: {'; '.join(differing)}", str(folder), "choose another -o")


def unique(names: Sequence[str]) -> tuple[str, ...]:
    """The task names without repeats, in the given order. A comma separates names; `all` stands for all benchmarks. InputError for none."""
    parts = [part for name in names for part in name.split(",") if part]
    if not parts:
        raise InputError("--task needs a name", hint="see `freetf evaluate --help`")
    everything = [one.name for one in BENCHMARKS.values() if one.in_all]
    return tuple(dict.fromkeys(one for part in parts for one in (everything if part == "all" else [part])))
