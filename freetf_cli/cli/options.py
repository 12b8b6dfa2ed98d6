"""Options and arguments that several commands share, with their shell completions.

A command names only those it needs; `app` adds `--quiet`, `--verbose` and `--debug` to every command that lacks them, and
acts on them itself.

    def show(run: RunArgument, json: JsonOption = False) -> None: ...
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Literal

import typer


def complete_recipe(incomplete: str) -> list[str]:
    """Names of shipped recipes, and TOML files, that begin with what is typed."""
    from freetf_cli.config.files import shipped_recipes

    files = (str(path) for path in _beside(incomplete) if path.suffix == ".toml")
    return _starting(incomplete, [*shipped_recipes(), *files])


def complete_sweep(incomplete: str) -> list[str]:
    """As for a recipe, and the sweeps themselves."""
    from freetf_cli.config.files import shipped_files

    return list(dict.fromkeys([*_starting(incomplete, shipped_files()), *complete_recipe(incomplete)]))


def complete_run(incomplete: str) -> list[str]:
    """Run folders that begin with what is typed, and folders that hold some."""
    folders = (path for path in _beside(incomplete) if path.is_dir() and not path.name.startswith("."))
    return _starting(incomplete, [str(run) for folder in folders for run in _runs(folder)])


def _runs(folder: Path) -> Iterator[Path]:
    """The folder if it is a run (it holds a recipe.toml), else the runs right inside it."""
    if (folder / "recipe.toml").is_file():
        yield folder
    else:
        yield from sorted(path.parent for path in folder.glob("*/recipe.toml"))


def _beside(incomplete: str) -> list[Path]:
    """What lies in the folder that the typed path points into."""
    folder = Path(incomplete) if incomplete.endswith("/") else Path(incomplete).parent
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _starting(incomplete: str, choices: Iterable[str]) -> list[str]:
    prefix = incomplete.removeprefix("./")
    return [choice for choice in choices if choice.startswith(prefix)]


JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout; errors become JSON on stderr.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no hints on stderr; warnings stay.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Tell more on stderr.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

DeviceOption = Annotated[
    Literal["auto", "cpu", "cuda", "mps"],
    typer.Option("--device", metavar="auto|cpu|cuda|mps", help="Where to compute; auto: cuda, then mps, then cpu."),
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="Seed of every random draw.")]
OptionalSeedOption = Annotated[
    int | None, typer.Option("--seed", min=0, max=2**32 - 1, help="Seed of every random draw; default: the recipe's.")
]

RecipeArgument = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="A shipped recipe's name, or a TOML file; /NAME after it: a variant of a sweep.",
        autocompletion=complete_recipe,
    ),
]
RunArgument = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run's folder, or one checkpoint's folder.", autocompletion=complete_run)
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting: table.key=TOML value. May be repeated.")
]
SmokeOption = Annotated[bool, typer.Option("--smoke", help="Apply the recipe's [smoke] overlay: seconds instead of minutes.")]

RunsArgument = Annotated[
    list[Path], typer.Argument(metavar="RUN…", help="Folders of runs, or of checkpoints.", autocompletion=complete_run)
]
DataOption = Annotated[
    Path | None, typer.Option("--data", metavar="DIR", help="A data folder to measure on, made like the run's; default: the run's own.")
]
SplitOption = Annotated[str | None, typer.Option("--split", metavar="NAME", help="The held-out split; default: the recipe's.")]
ReportOption = Annotated[
    Path | None, typer.Option("--report", metavar="FILE.html", help="Write the result as one HTML page that works offline.")
]


FigureOption = Annotated[
    Path | None,
    typer.Option(
        "--figure", metavar="FILE.svg", help="Draw the samples as the paper's Figure 4: one SVG picture with a panel for each run, by κ."
    ),
]
