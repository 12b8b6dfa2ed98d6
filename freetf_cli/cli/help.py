"""Typer's help pages, with a command's copy-paste examples at their end.

A command's docstring is its help, and lines that begin with `$ freetf` are its examples. They are printed last, without indentation or
wrapping, so that people can copy them and scripts can find them. A `[` in any help must be written `\\[`: Typer reads `[name]` as a style.
"""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup

EXAMPLE = "$ freetf"


def split_examples(docstring: str) -> tuple[str, str]:
    """Split a docstring into its text and its example lines."""
    lines = docstring.splitlines()
    examples = [line for line in lines if line.startswith(EXAMPLE)]
    return "\n".join(line for line in lines if line not in examples).strip(), "\n".join(examples)


class _WithExamples:
    """A mixin for Typer's commands, whose epilog holds the examples."""

    examples: str

    def __init__(self, *args: Any, **settings: Any) -> None:
        self.examples = settings.pop("epilog", None) or ""
        super().__init__(*args, **settings)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)  # type: ignore[misc]
        if self.examples:
            formatter.write(f"\n{self.examples}\n")


class ExampleCommand(_WithExamples, TyperCommand):
    """A command with examples."""


class ExampleGroup(_WithExamples, TyperGroup):
    """A group of commands with examples."""
