"""The program: its commands and its entry point.

A command's module is imported only if that command runs, or if help lists all commands. Importing one does not import torch.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import re
import sys
import time
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from freetf_cli import __version__
from freetf_cli.cli import failures
from freetf_cli.cli.help import ExampleCommand, ExampleGroup, split_examples
from freetf_cli.cli.options import DebugOption, JsonOption, QuietOption, VerboseOption
from freetf_cli.cli.output import Described, show
from freetf_cli.errors import InputError

COMMANDS = {  # `freetf NAME`, and its function in freetf_cli.cli
    "demo": "demo.demo",
    "gen-synthetic": "gen_synthetic.gen_synthetic",
    "prepare": "prepare.prepare",
    "train": "train.train",
    "sweep": "sweep.sweep",
    "sample": "sample.sample",
    "probe-latent": "probe_latent.probe_latent",
    "find-codes": "find_codes.find_codes",
    "reproduce": "reproduce.reproduce",
    "evaluate": "evaluate.evaluate",
    "show": "show.show",
    "runs": "runs.runs",
    "compare": "compare.compare",
    "export-metrics": "export_metrics.export_metrics",
    "export": "export.export",
    "import": "import_folder.import_folder",
    "recipe list": "recipe.list_recipes",
    "recipe show": "recipe.show_recipe",
    "recipe schema": "recipe.schema",
    "recipe diff": "recipe.diff",
    "bench train": "bench.train",
    "bench sample": "bench.sample",
    "bench mapper": "bench.mapper",
    "doctor": "doctor.doctor",
}
GROUPS = {
    "recipe": "List, show and compare recipes.\n\n$ freetf recipe list",
    "bench": "Time training, sampling and the mapper: ratios within one run.\n\n$ freetf bench train letters-free",
}
ABOUT = """Train the Free Transformer (arXiv 2510.17558), sample from it, and look into its latent.

$ freetf demo
$ freetf recipe list
$ freetf train demo-free -o runs/free
"""
OUTPUTS = ("-o", "--out")
GLOBAL_FLAGS = ("--json", "--quiet", "-q", "--verbose", "-v", "--debug")


def main(argv: list[str] | None = None) -> int:
    """Run a command line, without the program's name, and return its exit code."""
    if "OMP_WAIT_POLICY" not in os.environ:  # read when torch is imported; threads that spin long stop each other on busy cores
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    words = after_command(sys.argv[1:] if argv is None else argv)
    code = failures.attempt(failures.prepare_streams, words) or failures.attempt(lambda: _run(words), words)
    # Writing what is still buffered can fail too: a full disk, a closed pipe.
    code = code or failures.attempt(sys.stdout.flush, words)
    world = sys.modules.get("freetf_cli.training.world")
    if world is not None and world.joined:
        os._exit(code)  # the interpreter's clean-up could wait for dead processes, or abort
    return code


def after_command(words: list[str]) -> list[str]:
    """Move global flags behind the command: `-q recipe --json list` becomes `recipe list -q --json`."""
    flags: list[str] = []
    names: list[str] = []
    for number, word in enumerate(words):
        if word in GLOBAL_FLAGS:
            flags.append(word)
        elif word.startswith("-") or (names and names[0] not in GROUPS):
            return [*names, *flags, *words[number:]]
        else:
            names.append(word)
    return [*names, *flags]


def _run(words: list[str]) -> None:
    if "_FREETF_COMPLETE" in os.environ:  # a shell requests completions
        build_app()(prog_name="freetf")
    if any(before in OUTPUTS and not word for before, word in pairwise(words)) or "--out=" in words:
        raise InputError("the output has no name: -o is empty")  # as a path it would be the working folder
    needed = [name for name in COMMANDS if name.split()[0] == next(iter(words), "")]  # none for an unknown word: all are named then
    command = typer.main.get_command(build_app(needed or COMMANDS))
    with command.make_context("freetf", list(words), obj=words) as context:
        command.invoke(context)


def build_app(names: Iterable[str] = COMMANDS) -> typer.Typer:
    """The Typer app of some commands. Imports their modules."""
    app = _group(ABOUT, completion=True)
    app.callback()(_root)
    groups: dict[str, typer.Typer] = {}
    for name in names:
        group, _, command = name.rpartition(" ")
        if group and group not in groups:
            groups[group] = _group(GROUPS[group])
            groups[group].callback()(_help_without_command)
            app.add_typer(groups[group], name=group)
        _register(groups.get(group, app), command, COMMANDS[name])
    return app


def _group(about: str, *, completion: bool = False) -> typer.Typer:
    text, examples = split_examples(about)
    return typer.Typer(
        cls=ExampleGroup,
        help=text,
        epilog=examples,
        add_completion=completion,
        rich_markup_mode=None,
        invoke_without_command=True,
        suggest_commands=False,
        context_settings={"help_option_names": ["--help", "-h"]},
    )


def _register(app: typer.Typer, name: str, target: str) -> None:
    module, _, function = target.partition(".")
    command = getattr(importlib.import_module(f"freetf_cli.cli.{module}"), function)
    text, examples = split_examples(inspect.getdoc(command) or "")
    app.command(name, cls=ExampleCommand, help=text, epilog=examples)(with_globals(command))


def with_globals(function: Callable[..., Described | None]) -> Callable[..., None]:
    """The command with the options that every command has. Shows the result that the function returns.

    The function declares only those of them that it uses itself.
    """
    shared = {"json": JsonOption, "quiet": QuietOption, "verbose": VerboseOption, "debug": DebugOption}
    signature = inspect.signature(function, eval_str=True)
    own = signature.parameters
    extra = [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=a) for n, a in shared.items() if n not in own]

    @functools.wraps(function)
    def command(**values: Any) -> None:
        from importlib.metadata import version

        from freetf_cli.report import console

        if values["quiet"] and values["verbose"]:
            raise InputError("--quiet and --verbose contradict each other", hint="give only one of them")
        try:
            Path.cwd()
        except OSError:
            raise InputError("the working folder was deleted", hint="change to another folder") from None  # torch would abort the process
        console.set_verbosity(values["quiet"], values["verbose"], progress=not values["json"])
        began = time.monotonic()
        if values["verbose"]:
            console.detail(f"freetf {__version__}, Python {sys.version.split()[0]}, torch {version('torch')}")
        result = function(**{name: value for name, value in values.items() if name in own})
        if result is not None:
            show(result, json=values["json"])
        console.detail(f"done in {time.monotonic() - began:.1f} s")

    parameters = [*own.values(), *extra]
    for parameter in parameters:
        annotated: tuple[Any, ...] = get_args(parameter.annotation)
        if annotated and re.search(r"\b(int|float)\b", str(annotated[0])):
            annotated[1].metavar = annotated[1].metavar or "N"
    setattr(command, "__signature__", signature.replace(parameters=parameters))  # noqa: B010 (mypy does not know the attribute)
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"freetf {__version__}")
        raise typer.Exit


def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")] = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    debug: DebugOption = False,
) -> None:
    _help_without_command(context)


def _help_without_command(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
