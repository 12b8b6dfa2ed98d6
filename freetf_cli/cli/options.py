"""Options and arguments that several commands share, with their shell completions.

A command declares those that it reads. `app` adds --json, --quiet, --verbose and --debug to every command.

    def show(run: RunArgument) -> Described: ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Literal

import typer

from freetf_cli.cli.output import writable


def complete_recipe(incomplete: str) -> list[str]:
    """Shipped recipes and TOML files that begin with the typed text."""
    from freetf_cli.config.files import shipped_recipes

    files = (str(path) for path in _beside(incomplete) if path.suffix == ".toml")
    return _starting(incomplete, [*shipped_recipes(), *files])


def complete_sweep(incomplete: str) -> list[str]:
    """Sweeps, recipes and TOML files that begin with the typed text."""
    from freetf_cli.config.files import shipped_files

    return list(dict.fromkeys([*_starting(incomplete, shipped_files()), *complete_recipe(incomplete)]))


def complete_run(incomplete: str) -> list[str]:
    """Run folders that begin with the typed text, also inside the folders that do."""
    folders = (path for path in _beside(incomplete) if path.is_dir() and not path.name.startswith("."))
    return _starting(incomplete, [str(run) for folder in folders for run in _runs(folder)])


def _runs(folder: Path) -> Iterator[Path]:
    """The folder itself if it is a run (it contains a recipe.toml), else the runs directly inside it."""
    if (folder / "recipe.toml").is_file():
        yield folder
    else:
        yield from sorted(path.parent for path in folder.glob("*/recipe.toml"))


def _beside(incomplete: str) -> list[Path]:
    """The contents of the folder of the typed path."""
    folder = Path(incomplete) if incomplete.endswith("/") else Path(incomplete).parent
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _starting(incomplete: str, choices: Iterable[str]) -> list[str]:
    prefix = incomplete.removeprefix("./")
    return [choice for choice in choices if choice.startswith(prefix)]


def completer(names: Iterable[str]) -> Callable[[str], list[str]]:
    """The completion of an argument that takes one of these names."""
    return lambda incomplete: [name for name in names if name.startswith(incomplete)]


JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout; errors become JSON on stderr.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Hide progress and hints; warnings stay.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Print versions and the duration on stderr.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

RecipeArgument = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="A shipped recipe or a TOML file; SWEEP/NAME is a variant of a sweep.",
        autocompletion=complete_recipe,
    ),
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting: table.key=TOML value. May be repeated.")
]
SmokeOption = Annotated[bool, typer.Option("--smoke", help="Apply the recipe's [smoke] overlay: seconds instead of minutes.")]
DeviceOption = Annotated[
    Literal["auto", "cpu", "cuda", "mps"],
    typer.Option(metavar="auto|cpu|cuda|mps", help="Device to run on; auto: the first available of cuda, mps, cpu."),
]
SeedOption = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of every random draw.")]

RunArgument = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run's folder, or one checkpoint's folder.", autocompletion=complete_run)
]
DataOption = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Measure on this data folder, prepared like the run's; default: the run's own data."),
]
SplitOption = Annotated[str | None, typer.Option(metavar="NAME", help="The held-out split; default: the recipe's.")]
SequencesOption = Annotated[int, typer.Option(min=1, max=1_000_000, help="Held-out sequences to measure; always the same ones.")]
SamplesOption = Annotated[int, typer.Option(min=1, max=1 << 16, help="Draws of Z per sequence for the importance-weighted bound.")]
PromptOption = Annotated[str | None, typer.Option(metavar="TEXT", help="Text that the samples continue; default: the task's prompt.")]
ReportOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE.html", help="Write the result as one HTML page that works offline.", callback=writable),
]
