"""The program: its commands and its entry point.

A command's module is imported only if that command runs, or if help lists all commands. Importing one does not import torch.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterable
from typing import Annotated, Any, NamedTuple

import typer

from freetf_cli import __version__
from freetf_cli.cli import failures
from freetf_cli.cli.help import ExampleCommand, ExampleGroup, split_examples
from freetf_cli.cli.options import DebugOption, JsonOption, QuietOption, VerboseOption
from freetf_cli.errors import InputError


class Entry(NamedTuple):
    """One command: `freetf [group] name` is `module.function` in `freetf_cli.cli`."""

    name: str
    module: str
    function: str
    group: str = ""


COMMANDS = (
    Entry("demo", "demo", "demo"),
    Entry("gen-synthetic", "gen_synthetic", "gen_synthetic"),
    Entry("prepare", "prepare", "prepare"),
    Entry("train", "train", "train"),
    Entry("sweep", "sweep", "sweep"),
    Entry("sample", "sample", "sample"),
    Entry("probe-latent", "probe_latent", "probe_latent"),
    Entry("evaluate", "evaluate", "evaluate"),
    Entry("show", "show", "show"),
    Entry("compare", "compare", "compare"),
    Entry("list", "recipe", "list_recipes", "recipe"),
    Entry("show", "recipe", "show_recipe", "recipe"),
    Entry("schema", "recipe", "schema", "recipe"),
    Entry("diff", "recipe", "diff", "recipe"),
    Entry("train", "bench", "train", "bench"),
    Entry("sample", "bench", "sample", "bench"),
    Entry("mapper", "bench", "mapper", "bench"),
    Entry("doctor", "doctor", "doctor"),
)
GROUPS = {
    "recipe": "List, show and compare recipes.\n\n$ freetf recipe list",
    "bench": "Time training, sampling and the mapper: ratios within one run.\n\n$ freetf bench train letters-free",
}
ABOUT = """Train the Free Transformer (arXiv 2510.17558), sample from it, and look into its latent.

$ freetf demo
$ freetf recipe list
$ freetf train letters-free -o runs/letters
"""
GLOBAL_FLAGS = ("--json", "--quiet", "-q", "--verbose", "-v", "--debug")


def main(argv: list[str] | None = None) -> int:
    """Run a command line, without the program's name, and return its exit code."""
    words = after_command(sys.argv[1:] if argv is None else argv)
    code = failures.attempt(failures.prepare_streams, words) or failures.attempt(lambda: _run(words), words)
    # Writing what is still buffered can fail too: a full disk, a closed pipe.
    code = code or failures.attempt(sys.stdout.flush, words)
    distributed = sys.modules.get("freetf_cli.training.distributed")
    if distributed is not None and distributed.left_open:
        os._exit(code)  # the interpreter's clean-up would wait for dead processes, or abort
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


def _run(words: list[str]) -> int | None:
    if "_FREETF_COMPLETE" in os.environ:  # a shell requests completions
        build_app()(prog_name="freetf")
    command = typer.main.get_command(build_app(_needed(words)))
    with command.make_context("freetf", list(words), obj=words) as context:
        result = command.invoke(context)
    return result if isinstance(result, int) else None


def _needed(words: list[str]) -> list[Entry]:
    """The entries of the command that an invocation names, or all entries if it names none."""
    first = next(iter(words), "")
    return [entry for entry in COMMANDS if first == (entry.group or entry.name)] or list(COMMANDS)


def build_app(entries: Iterable[Entry] = COMMANDS) -> typer.Typer:
    """The Typer app of some commands. Imports their modules."""
    app = _group(ABOUT, completion=True)
    app.callback()(_root)
    groups: dict[str, typer.Typer] = {}
    for entry in entries:
        if entry.group and entry.group not in groups:
            groups[entry.group] = _group(GROUPS[entry.group])
            groups[entry.group].callback()(_help_without_command)
            app.add_typer(groups[entry.group], name=entry.group)
        _register(groups.get(entry.group, app), entry)
    return app


def _group(about: str, *, completion: bool = False) -> typer.Typer:
    text, examples = split_examples(about)
    return typer.Typer(
        cls=ExampleGroup,
        help=text,
        epilog=examples,
        add_completion=completion,
        invoke_without_command=True,
        suggest_commands=False,
        context_settings={"help_option_names": ["--help", "-h"]},
    )


def _register(app: typer.Typer, entry: Entry) -> None:
    function = getattr(importlib.import_module(f"freetf_cli.cli.{entry.module}"), entry.function)
    text, examples = split_examples(inspect.getdoc(function) or "")
    app.command(entry.name, cls=ExampleCommand, help=text, epilog=examples)(with_globals(function))


def with_globals(function: Callable[..., Any]) -> Callable[..., Any]:
    """The command with the options `--quiet`, `--verbose` and `--debug`, whether it declares them or not."""
    added = {"quiet": QuietOption, "verbose": VerboseOption, "debug": DebugOption}
    signature = inspect.signature(function, eval_str=True)
    own = signature.parameters
    extra = [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=a) for n, a in added.items() if n not in own]

    @functools.wraps(function)
    def command(**values: Any) -> Any:
        _set_verbosity(values["quiet"], values["verbose"])
        return function(**{name: value for name, value in values.items() if name in own})

    parameters = [*own.values(), *extra]
    setattr(command, "__signature__", signature.replace(parameters=parameters))  # noqa: B010 (mypy does not know the attribute)
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def _set_verbosity(quiet: bool, verbose: bool) -> None:
    if quiet and verbose:
        raise InputError("--quiet and --verbose contradict each other", hint="give only one of them")
    from freetf_cli.report import console

    console.set_verbosity(quiet, verbose)


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
