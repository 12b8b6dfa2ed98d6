"""`freetf evaluate`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from freetf_cli.cli.options import DeviceOption, JsonOption, ReportOption, SeedOption, SplitOption, complete_run, completer
from freetf_cli.cli.output import Described, show, write_page
from freetf_cli.errors import InputError
from freetf_cli.evaluation.benchmarks import BENCHMARKS
from freetf_cli.evaluation.benchmarks.minimum import parse_minimums, raise_if_below
from freetf_cli.evaluation.metrics import Request, default_sequences, describe, metric_names, own_options

if TYPE_CHECKING:
    from freetf_cli.evaluation.benchmarks.run import BenchmarkRequest
    from freetf_cli.records.benchmarks import Benchmarks

NAMES = (*metric_names(), *BENCHMARKS)


def evaluate(
    run: Annotated[
        Path | None, typer.Argument(metavar="RUN", help="A run's folder, or one checkpoint's folder.", autocompletion=complete_run)
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A metric, a benchmark, or `all` benchmarks. May be repeated for benchmarks. Default: likelihood.",
            autocompletion=completer(NAMES),
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of prepared data (default: that of the run). For benchmarks, the folder of their data sets (required).",
        ),
    ] = None,
    split: SplitOption = None,
    sequences: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1_000_000,
            help="Held-out sequences to measure, always the same ones; creativity: rows to generate. Default: 256, or 1000 rows.",
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1 << 16,
            help="Draws of Z per sequence for the importance-weighted bound of likelihood and by_label (default: 512), or per answer of a "
            "benchmark (default: 16).",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Measure only the first N items of each benchmark. Default: all.")] = None,
    fewshot: Annotated[
        int | None, typer.Option(min=0, max=100, help="Few-shot examples before each question. Default: depends on the benchmark.")
    ] = None,
    z: Annotated[
        Literal["posterior-prompt", "prior"] | None,
        typer.Option(
            metavar="posterior-prompt|prior",
            help="Source of Z at the positions of a benchmark's prompt: the encoder, which reads only the prompt (default), or the prior.",
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=100,
            help="Temperature of generated tokens. Default: 1 for metrics; for benchmarks that of the task file, which is 0 for freetf's.",
        ),
    ] = None,
    attempts: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1000,
            help="Answers, or programs, to generate for each item, for pass@k. A Free model draws a new Z for each. Default: 64; of "
            "benchmarks 1.",
        ),
    ] = None,
    allow_code_execution: Annotated[
        bool, typer.Option("--allow-code-execution", help="Run the programs that the model writes, in a sandbox.")
    ] = False,
    checkpoints: Annotated[
        Literal["last-third"] | None,
        typer.Option(
            metavar="last-third",
            help="Average each benchmark over the checkpoints of the last third of training. Default: only the last checkpoint.",
        ),
    ] = None,
    paper: Annotated[
        int | None, typer.Option(min=1, max=3, help="Show the benchmarks beside the figures of the paper's Table 1, 2 or 3.")
    ] = None,
    beside: Annotated[
        list[Path] | None,
        typer.Option(
            "--beside",
            metavar="DIR",
            help="With --paper: add a column with the results in DIR, the -o of an earlier evaluation. May be repeated.",
        ),
    ] = None,
    rescore: Annotated[
        list[Path] | None,
        typer.Option(
            "--rescore",
            metavar="FILE",
            help="Score the items in FILE, or in all files of a folder, again without the model. -o wrote them. May be repeated.",
        ),
    ] = None,
    minimum: Annotated[
        list[str] | None,
        typer.Option(
            "--min",
            metavar="[TASK=]SCORE",
            help="Exit with code 3 if the score of a benchmark, or of TASK alone, is below SCORE, from 0 to 1. May be repeated.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="DIR", help="Write the items of benchmarks to this folder.")] = None,
    report: ReportOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the interrupted evaluation in the folder of -o.")] = False,
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
    json: JsonOption = False,
) -> None:
    """Measure a run on held-out data, or on benchmarks.

    {metrics}

    Benchmarks, by lm-eval (pip install 'freetf[eval]'): {benchmarks}. Any other name is one of lm-eval's own tasks, whose
    data it downloads. Where both have a task of the same name, lm-eval:NAME selects lm-eval's.

    $ freetf evaluate runs/letters-free --task likelihood
    $ freetf evaluate runs/letters-free --task likelihood --sequences 1024 --json
    $ freetf evaluate runs/blocks-softmax --task answers --sequences 1000
    $ freetf evaluate runs/text-free --task hellaswag --task piqa --data benchmarks --limit 100 -o scores
    $ freetf evaluate runs/text-free --task hellaswag --data benchmarks --min 0.3
    $ freetf evaluate runs/text-free --task needles,babilong --data benchmarks --report long.html
    $ freetf evaluate --rescore scores
    $ freetf evaluate runs/siblings-free --task creativity --temperature 0
    $ freetf evaluate runs/countdown-free --task attempts --attempts 64
    $ freetf evaluate runs/text-free --task persistence
    """
    from freetf_cli.evaluation.benchmarks.measure import Questions
    from freetf_cli.evaluation.benchmarks.run import BenchmarkRequest, unique
    from freetf_cli.evaluation.benchmarks.scoring import DRAWS
    from freetf_cli.evaluation.benchmarks.tables import saved

    of_metrics = {"--split": split, "--sequences": sequences}
    of_answers: dict[str, Any] = {"--limit": limit, "--fewshot": fewshot, "--z": z, "--temperature": temperature, "--attempts": attempts}
    of_answers |= {"--checkpoints": checkpoints, "-o": out, "--resume": resume or None}
    if beside and paper is None:
        raise InputError("--beside needs the table to show", hint="--paper 1, 2 or 3")
    for folder in beside or []:
        saved(folder)
    if rescore:
        if run is not None:
            raise InputError("--rescore has no RUN", hint="name each folder with a --rescore of its own")
        _refuse({"--task": task, "--data": data, "--samples": samples, **of_metrics, **of_answers}, "--rescore has no")
        results = _rescore(rescore, allow_code_execution)
        tasks = [one.task for result in results for one in result.tasks]
        _show_benchmarks(results, paper, beside, parse_minimums(minimum or [], tasks), json, report)
        return
    if run is None:
        raise InputError("missing argument 'RUN'", hint="see `freetf evaluate --help`")
    names = unique(task or ["likelihood"])
    if names[0] in metric_names():
        of_some = {"--samples": samples, **{name: of_answers.pop(name) for name in ("--temperature", "--attempts")}}
        of_benchmarks = {**of_answers, "--allow-code-execution": allow_code_execution or None, "--paper": paper, "--min": minimum}
        _refuse(of_benchmarks, f"--task {names[0]}: only benchmarks have")
        _refuse({name: of_some[name] for name in of_some if name not in own_options(names[0])}, f"--task {names[0]} has no")
        rows = sequences or default_sequences(names[0])
        asked = Request(str(run), "", rows, samples or 512, seed, temperature=temperature, attempts=attempts)
        show(_metric(run, names, data, split, asked, device), json=json, report=report)
        return
    _refuse(of_metrics, f"--task {names[0]}: a benchmark has no")
    if resume and out is None:
        raise InputError("--resume needs the folder of the interrupted evaluation", hint="-o DIR")
    minimums = parse_minimums(minimum or [], names)
    questions = Questions(None if data is None else str(data), limit, fewshot, seed, attempts or 1, allow_code_execution)
    several = checkpoints == "last-third"
    request = BenchmarkRequest(str(run), names, questions, z or "posterior-prompt", samples or DRAWS, temperature, out, resume, several)
    _show_benchmarks([_benchmarks(run, request, device)], paper, beside, minimums, json, report)


def _refuse(options: dict[str, Any], why: str) -> None:
    """Raise InputError if an option is given that applies to another kind of task."""
    if given := [name for name, value in options.items() if value is not None]:
        raise InputError(f"{why} {given[0]}")


def _metric(run: Path, names: tuple[str, ...], data: Path | None, split: str | None, request: Request, device: Any) -> Described:
    from freetf_cli.device import keep_memory, resolve_device, set_threads
    from freetf_cli.evaluation.metrics import load
    from freetf_cli.evaluation.run_data import open_split
    from freetf_cli.report.console import warn
    from freetf_cli.report.progress import counter
    from freetf_cli.runs.checkpoint import open_model

    if len(names) > 1:
        raise InputError(f"--task {names[0]} is measured alone", hint="give the others in a command of their own")
    measure = load(names[0])
    checkpoint, model = open_model(run, resolve_device(device), warn)
    set_threads(checkpoint.recipe.parallel.threads)
    keep_memory()
    source, chosen = open_split(checkpoint, data, split)
    total = min(request.sequences, source.rows.size(chosen) or request.sequences)
    with counter("sequences", total=total) as advance:
        return measure(checkpoint, model, source, replace(request, split=chosen, advance=advance))


def _warn_unconfined() -> None:
    """Warn if the kernel of this system confines generated code only in part, or not at all."""
    from freetf_cli.evaluation.benchmarks.sandbox import CONFINED, confinement
    from freetf_cli.report.console import warn

    confined = confinement()
    if lacking := [what for what in CONFINED if what not in confined]:
        warn(f"this system does not confine the {' and '.join(lacking)} of generated code: only Python's audit hook stops it")


def _benchmarks(run: Path, request: BenchmarkRequest, device: Any) -> Benchmarks:
    from freetf_cli.device import resolve_device, set_threads
    from freetf_cli.evaluation.benchmarks.measure import runs_code
    from freetf_cli.evaluation.benchmarks.run import last_third, run_benchmarks
    from freetf_cli.report.console import warn
    from freetf_cli.report.progress import counter
    from freetf_cli.runs.checkpoint import open_model

    where = resolve_device(device)
    opened = (open_model(folder, where, warn) for folder in (last_third(run) if request.several else [run]))

    def limited() -> Iterator[Any]:
        if any(map(runs_code, request.tasks)):
            _warn_unconfined()
        for checkpoint, model in opened:
            set_threads(checkpoint.recipe.parallel.threads)
            yield checkpoint, model

    return run_benchmarks(limited(), request, counter)


def _rescore(files: list[Path], allow_code: bool) -> list[Benchmarks]:
    from freetf_cli.evaluation.benchmarks.rescore import rescore
    from freetf_cli.report.progress import counter

    if allow_code:
        _warn_unconfined()
    return rescore(files, counter, allow_code=allow_code)


def _show_benchmarks(
    results: list[Benchmarks],
    paper: int | None,
    beside: list[Path] | None,
    minimums: dict[str, float],
    json: bool,
    report: Path | None,
) -> None:
    """Show the results, with the paper's table if --paper asks for it, and fail if a score is below --min. JSON: one result a line."""
    from freetf_cli.evaluation.benchmarks.tables import paper_table
    from freetf_cli.records.benchmarks import Rescored

    if paper is not None:
        results = [replace(result, paper=paper_table(paper, result, beside or [])) for result in results]
    together = results[0] if len(results) == 1 else Rescored(results)
    if report is not None:
        write_page(report, together)
    for shown in results if json else [together]:
        show(shown, json=json)
    raise_if_below(results, minimums)


_PARTS = {"{metrics}": "\n\n    ".join(map(describe, metric_names())), "{benchmarks}": ", ".join(BENCHMARKS)}
for _mark, _text in _PARTS.items():
    evaluate.__doc__ = str(evaluate.__doc__).replace(_mark, _text)
