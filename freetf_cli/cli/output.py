"""Shows a command's result as a report in the terminal, as JSON, or as an HTML page. Only this module handles --json and --report."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import typer

from freetf_cli.errors import InputError

if TYPE_CHECKING:
    from freetf_cli.report.blocks import Report


class Described(Protocol):
    """A record with a report."""

    def report(self) -> Report: ...


def show(result: Described, *, json: bool = False, report: Path | None = None) -> None:
    """Write the report's page if a path is given, then print the result on stdout: JSON with --json, else its report.

    The page comes first: a reader that closes stdout early (`| head`) must not lose it.
    """
    if report is not None:
        write_page(report, result)
    if json:
        from freetf_cli.records import to_json

        typer.echo(to_json(result))
    else:
        from freetf_cli.report import terminal

        terminal.show(result.report())


def write_page(file: Path, result: Described) -> None:
    """Write a result's HTML page, and print its path on stderr."""
    from freetf_cli.report import page

    write_file(file, page.html(result.report()), "report")


def write_file(file: Path, text: str, what: str) -> None:
    """Write a file, and print its path on stderr. A link stays, and the file that it leads to is written."""
    from freetf_cli.durable import write_durably
    from freetf_cli.report.console import note

    target = linked(file, what)
    replaced = " (replaced)" * target.exists()
    write_durably(target, text)
    note(f"{what}: {file}{replaced}")


def linked(file: Path, what: str) -> Path:
    """The file that a path leads to, through its links. Raises InputError if it is there and not a regular file."""
    from freetf_cli.durable import NOT_REGULAR

    target = Path(os.path.realpath(file))
    if target.is_symlink():  # still: a loop
        raise InputError(f"the {what}'s path is a loop of links", str(file))
    if target.exists() and not target.is_file():
        raise InputError(f"the {what} cannot be written: {NOT_REGULAR}", str(file))
    return target


def writable(param: typer.CallbackParam, file: Path | None) -> Path | None:
    """The callback of --report and --figure: refuses, before any work, a file that cannot be written."""
    if file is None:
        return None
    what, hint = param.name, f"name a file: {param.opts[0]} {param.metavar}"
    if str(file) == "-":
        raise InputError(f"the {what} needs a file, because the result goes to stdout", hint=hint)
    if file.is_dir():
        raise InputError(f"the {what}'s path is a folder", str(file), hint)
    target = linked(file, str(what))
    folder = target.parent if file.is_symlink() else file.parent  # as the user named it
    if not folder.is_dir():
        raise InputError(f"the {what}'s folder does not exist", str(folder), "create it first")
    if not os.access(folder, os.W_OK):
        raise InputError(f"the {what}'s folder is not writable", str(folder))
    return file
