"""How a command shows its result: as a report in the terminal, as JSON, as a page. The only place that handles --json and --report."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import typer

from freetf_cli.errors import InputError

if TYPE_CHECKING:
    from freetf_cli.report.blocks import Report


class Described(Protocol):
    """A record that describes itself."""

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


def write_page(file: Path, result: Described, what: str = "report") -> None:
    """Write a result's page and say where it is."""
    from freetf_cli.report import page

    write_file(file, page.html(result.report()), what)


def write_file(file: Path, text: str, what: str) -> None:
    """Write a file and say on stderr where it is."""
    from freetf_cli.durable import write_durably
    from freetf_cli.report.console import note

    write_durably(file, text)
    note(f"{what}: {file}")


def check_report(report: Path | None) -> None:
    """Refuse, before any work, a report that could not be written."""
    _check_file(report, "report", "--report FILE.html")


def check_figure(figure: Path | None, report: Path | None = None) -> None:
    """Refuse, before any work, a figure that could not be written or that would overwrite the report."""
    _check_file(figure, "figure", "--figure FILE.svg")
    if figure is not None and report is not None and figure.absolute() == report.absolute():
        raise InputError("figure and report are one file", str(figure), "name two: --figure FILE.svg --report FILE.html")


def _check_file(file: Path | None, what: str, option: str) -> None:
    if file is None:
        return
    if str(file) == "-":
        raise InputError(f"a {what} is a file, stdout has the result", hint=f"name one: {option}")
    if file.is_dir():
        raise InputError(f"the {what}'s name is taken by a folder", str(file), f"name a file: {option}")
    if not file.parent.is_dir():
        raise InputError(f"no such folder for the {what}", str(file.parent), "create it first")
    if not os.access(file.parent, os.W_OK):
        raise InputError(f"the {what}'s folder cannot be written to", str(file.parent))
