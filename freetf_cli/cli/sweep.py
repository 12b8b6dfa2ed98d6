"""`freetf sweep`: print or run one `freetf train` for each variant, value and seed of a recipe."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from freetf_cli.cli.options import DeviceOption, JsonOption, SmokeOption, complete_sweep
from freetf_cli.errors import ExitCode, FreetfError, InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from freetf_cli.config.recipe import Recipe
    from freetf_cli.config.sweep import PlannedRun


def sweep(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A sweep with all its variants, a recipe or a TOML file.", autocompletion=complete_sweep)
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder of all runs; a run's folder is DIR/NAME.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=A,B", help="Change a setting, table.key=TOML value, with one run per value. May be repeated."),
    ] = None,
    seeds: Annotated[str | None, typer.Option(metavar="0..4|0,1,2", help="Train one run per seed; 0..4 includes 4.")] = None,
    run: Annotated[int | None, typer.Option(metavar="N", min=1, max=1024, help="Run the commands here, N at a time.")] = None,
    smoke: SmokeOption = False,
    device: DeviceOption = "auto",
    json: JsonOption = False,
) -> None:
    """Print one resumable command per run: every variant of a sweep, every value of a setting, every seed.

    Give the lines to xargs, a job array or your own launcher. --run N runs them here instead, N at a time: it skips finished runs, writes
    each run's output to DIR/NAME.log, and exits with code 1 if a run fails.

    $ freetf sweep letters-free --set latent.kappa=0.25,0.5 --seeds 0..4 -o runs/kappa
    $ freetf sweep letters-free --seeds 0..4 -o runs/seeds | xargs -L 1 -P 2 env
    $ freetf sweep figure4-mini -o runs/figure4-mini --run 2
    """
    from freetf_cli.config.files import load_recipe
    from freetf_cli.config.sweep import parse_seeds, plan_sweep

    if (out / "recipe.toml").is_file():
        raise InputError("the folder of a sweep cannot be a run itself", str(out), "choose another -o")
    _check_name(recipe)
    planned = plan_sweep(recipe, set_ or [], None if seeds is None else parse_seeds(seeds))
    recipes = [load_recipe(one.recipe, smoke=smoke, overrides=one.settings) for one in planned]  # report all errors before any work
    planned, recipes = _distinct(planned, recipes)
    for one, loaded in zip(planned, recipes, strict=True):
        _check_task(one, loaded)
    extra = [*(["--smoke"] if smoke else []), *([] if device == "auto" else ["--device", device])]
    records = [_record(one, out, extra) for one in planned]
    if run is None:
        for record in records:
            _print(record, shlex.join(record["command"]), json)
    else:
        from freetf_cli.training.pool import is_done

        _run(records, [is_done(out / one.name, resolved) for one, resolved in zip(planned, recipes, strict=True)], run, out, json)


def _check_name(recipe: str) -> None:
    """Refuse an unknown recipe, with a hint that lists the shipped sweeps."""
    from freetf_cli.config.files import expand, shipped_files

    try:
        expand(recipe)
    except InputError as error:
        if Path(recipe).exists():
            raise  # the file is at fault, not the name
        sweeps = ", ".join(name for name in shipped_files() if expand(name) != [name])
        raise InputError(error.what, error.where, f"{error.hint} (sweeps: {sweeps})") from None


def _distinct(planned: Sequence[PlannedRun], recipes: Sequence[Recipe]) -> tuple[list[PlannedRun], list[Recipe]]:
    """Leave out runs whose recipe equals that of an earlier run, such as `0.50` after `0.5`, or a value given twice."""
    from freetf_cli.report.console import note

    known: dict[str, tuple[PlannedRun, Recipe]] = {}
    for one, recipe in zip(planned, recipes, strict=True):
        first, _ = known.setdefault(recipe.model_copy(update={"description": ""}).model_dump_json(), (one, recipe))
        if first is not one:
            same = "it is given twice" if one.name == first.name else f"it would be the same run as {first.name}"
            note(f"{one.name} is left out: {same}")
    return [one for one, _ in known.values()], [recipe for _, recipe in known.values()]


def _check_task(one: PlannedRun, recipe: Recipe) -> None:
    """Refuse a run whose parameters or context do not suit its task. A data folder is not checked: it may not exist yet."""
    from freetf_cli.data.batches import open_data

    if recipe.data.task is not None:
        try:
            source = open_data(recipe.data, context=recipe.model.context, seed=recipe.train.seed)
            known = recipe.model.model_copy(update={"context": source.context})
            for fault in recipe.model_copy(update={"model": known}).broken():
                raise InputError(fault.message)
        except InputError as error:
            raise InputError(error.what, error.where or one.name, error.hint) from None


def _record(one: PlannedRun, out: Path, extra: Sequence[str]) -> dict[str, Any]:
    """The JSON record of a planned run."""
    folder = str(out / one.name)
    settings = [word for setting in one.settings for word in ("--set", setting)]
    command = ["freetf", "train", one.recipe, *extra, *settings, "-o", folder, "--resume", "auto", "--quiet"]
    return {"name": one.name, "recipe": one.recipe, "settings": list(one.settings), "run": folder, "command": command}


def _run(records: Sequence[dict[str, Any]], done: Sequence[bool], at_once: int, out: Path, json: bool) -> None:
    """Run the commands of the runs that are not done."""
    from freetf_cli.report.console import note, warn
    from freetf_cli.training.pool import Job, run_jobs

    out.mkdir(parents=True, exist_ok=True)
    waiting, unfinished = [], []
    for record, skipped in zip(records, done, strict=True):
        if skipped:
            _print({**record, "status": "skipped"}, f"skipped {record['name']}: done before", json)
        else:
            waiting.append(record)
    jobs = [Job(record["command"][1:], out / f"{record['name']}.log") for record in waiting]
    if jobs:
        note(f"{len(jobs)} runs, {at_once} at a time; watch one: freetf show {shlex.quote(waiting[0]['run'])}")

    def ended(index: int, code: int) -> None:
        name, job = waiting[index]["name"], jobs[index]
        status = {0: "done", ExitCode.STOPPED: "stopped", ExitCode.INTERRUPTED: "stopped"}.get(code, "failed")
        if code:
            unfinished.append(name)
        if status == "failed":
            warn(f"{name}: exit code {code}: {job.last_line().removeprefix('freetf: error: ')}")
        _print({**waiting[index], "status": status, "exit_code": code, "log": str(job.log)}, f"{status} {name}", json)

    run_jobs(jobs, at_once, ended)
    if unfinished:
        what = f"{len(unfinished)} of {len(records)} runs did not finish: {', '.join(unfinished)}"
        raise FreetfError(what, str(out), f"their output is in {out}/NAME.log")


def _print(record: dict[str, Any], text: str, json: bool) -> None:
    from freetf_cli.records import to_json

    typer.echo(to_json(record) if json else text)
