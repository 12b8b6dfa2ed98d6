"""Benchmarks of a checkpoint: opens the folder of the items, asks lm-eval for one benchmark after the other, and writes what was found."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from freetf_cli.durable import read_small, write_durably
from freetf_cli.errors import InputError
from freetf_cli.evaluation import Stage
from freetf_cli.evaluation.benchmarks import BENCHMARKS, FOREIGN
from freetf_cli.evaluation.benchmarks.answers import Answers
from freetf_cli.evaluation.benchmarks.measure import Questions, check_name, measure, require_lm_eval, to_lines
from freetf_cli.evaluation.benchmarks.scoring import DRAWS, Scorer, ZSource
from freetf_cli.model.decoder import Decoder
from freetf_cli.records import to_json
from freetf_cli.records.benchmarks import Benchmarks
from freetf_cli.runs.checkpoint import Checkpoint

SETTINGS, ANSWERS, RESULT = "settings.json", "answers.jsonl", "result.json"


@dataclass(frozen=True)
class BenchmarkRequest:
    """What to measure and how. z, draws: of a Free model's log-likelihoods. temperature: of generated text; None: each task's own.

    folder: of the items; None: nothing is written. resume: the folder may have answers to the same questions already.
    """

    run: str
    tasks: tuple[str, ...]
    questions: Questions
    z: ZSource = "posterior-prompt"
    draws: int = DRAWS
    temperature: float | None = None
    folder: Path | None = None
    resume: bool = False

    def settings(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """All that the answers depend on."""
        asked = {name: value for name, value in asdict(self.questions).items() if name != "allow_code"}
        asked |= {"z": self.z, "draws": self.draws, "temperature": self.temperature}
        return {"checkpoint": checkpoint.weights_sha256, **asked}


def run_benchmarks(checkpoint: Checkpoint, model: Decoder, request: BenchmarkRequest, stage: Stage) -> Benchmarks:
    """The scores of all benchmarks. InputError for an unknown name, data that is not there, or a folder of another evaluation."""
    for name in request.tasks:
        if name not in BENCHMARKS:
            check_name(name)
    require_lm_eval()
    from freetf_cli.evaluation.benchmarks.adapter import RunLM

    free, folder = model.latent is not None, request.folder
    if request.questions.attempts > 1 and not free and not request.temperature:
        raise InputError("--attempts: all programs of a baseline are the same without a temperature", hint="--temperature 0.8")
    answers = Answers() if folder is None else _open(folder, request, checkpoint)
    scorer = Scorer(model, z=request.z, draws=request.draws, seed=request.questions.seed)
    lm = RunLM(scorer, checkpoint.tokenizer(), answers, stage, request.temperature)
    scores = []
    try:
        for name in request.tasks:
            found, items = measure(lm, name, request.questions, stage)
            scores += found
            if folder is not None:
                write_durably(folder / f"{name.removeprefix(FOREIGN)}.jsonl", to_lines(items))
    finally:
        answers.close()
    result = Benchmarks(
        run=request.run,
        kind=checkpoint.recipe.kind,
        step=checkpoint.step,
        z=request.z if free else None,
        draws=scorer.draws,
        seed=request.questions.seed,
        limit=request.questions.limit,
        tasks=scores,
        folder=None if folder is None else str(folder),
    )
    if folder is not None:
        write_durably(folder / RESULT, to_json(result) + "\n")
    return result


def _open(folder: Path, request: BenchmarkRequest, checkpoint: Checkpoint) -> Answers:
    """The answers in the folder, which is created, or resumed if it has the same settings."""
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
        write_durably(file, json.dumps(settings, indent=1) + "\n")
    return Answers(folder / ANSWERS)


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_small(file))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InputError("the settings of the evaluation are damaged", str(file), "choose another -o")
    return found


def _compare(was: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    """Raise InputError if the folder's answers are to other questions, or of another model."""
    differing = [f"{name} was {was.get(name)}, not {now[name]}" for name in now if was.get(name) != now[name]]
    if differing:
        raise InputError(f"--resume: the evaluation differs: {'; '.join(differing)}", str(folder), "choose another -o")


def unique(names: Sequence[str]) -> tuple[str, ...]:
    """Names as the user gave them, each once; a comma separates several."""
    return tuple(dict.fromkeys(part for name in names for part in name.split(",") if part))
