"""Help pages: usage, text, arguments, options and, last, examples to copy.

A command's docstring is its help, and lines that begin with `$ freetf` are its examples. They are printed without indentation or
wrapping, so that people can copy them and scripts can find them. Colour follows the rules of every other output: `report.console`.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from typer.core import TyperCommand, TyperGroup

EXAMPLE = "$ freetf"
SHARED = ("--json", "--quiet", "--verbose", "--debug", "--help")  # options of every command, explained by `freetf --help`
NARROWEST, WIDEST = 40, 100  # columns of a page
UNBROKEN = "\u2011"  # stands for a hyphen while text is wrapped, so that no line ends within --dry-run


def split_examples(docstring: str) -> tuple[str, str]:
    """Split a docstring into its text and its example lines."""
    lines = docstring.splitlines()
    examples = [line for line in lines if line.startswith(EXAMPLE)]
    return "\n".join(line for line in lines if line not in examples).strip(), "\n".join(examples)


def summary(command: Any) -> str:
    """The first paragraph of a command's help."""
    return " ".join(command.help.split("\n\n")[0].split())


def metavar(item: Any) -> str:
    """What stands for a parameter's value: `DIR`; empty for a flag."""
    return "" if getattr(item, "is_flag", False) else item.metavar or item.name.upper()


def meaning(item: Any, quote: str = "") -> str:
    """A parameter's help, with its default, or whether an option is required."""
    has_default = isinstance(item.default, str | int | float | Path) and not isinstance(item.default, bool)
    default = f" Default: {quote}{item.default}{quote}." if has_default else ""
    required = " Required." if item.required and item.param_type_name == "option" else ""
    return f"{item.help}{default}{required}"


class _Page:
    """A mixin for Typer's commands, whose epilog holds the examples."""

    examples: str

    def __init__(self, *args: Any, **settings: Any) -> None:
        self.examples = settings.pop("epilog", None) or ""
        super().__init__(*args, **settings)

    def get_help(self, ctx: Any) -> str:
        from rich.text import Text

        from freetf_cli.report.console import out

        text, console = Text(super().get_help(ctx).replace(UNBROKEN, "-")), out()  # type: ignore[misc]
        text.highlight_regex(r"(?m)^(Usage|Arguments|Options|Commands|Examples):", "bold")
        text.highlight_regex(r"(?<![\w-])--?[a-z][\w-]*", "cyan")
        with console.capture() as page:
            console.print(text, soft_wrap=True)
        return page.get().rstrip("\n")

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.width = max(NARROWEST, min(shutil.get_terminal_size().columns, WIDEST))
        is_root, commands = ctx.parent is None, getattr(self, "commands", {})
        visible = [item for item in self.get_params(ctx) if not item.hidden]  # type: ignore[attr-defined]
        arguments = [item for item in visible if item.param_type_name == "argument"]
        options = [item for item in visible if item not in arguments and (is_root or not {*item.opts} & {*SHARED})]
        words = ["[OPTIONS]"] * bool(options) + [metavar(item) for item in arguments] + ["COMMAND …"] * bool(commands)
        formatter.write_usage(ctx.command_path, " ".join(words))
        formatter.write_paragraph()
        formatter.write_text(self.help.replace("-", UNBROKEN))  # type: ignore[attr-defined]
        sections = {
            "Arguments": [(metavar(item), meaning(item)) for item in arguments],
            "Options": [(f"{', '.join(sorted(item.opts, key=len))} {metavar(item)}", meaning(item)) for item in options],
            "Commands": [(name, summary(command)) for name, command in commands.items()],
        }
        for heading, rows in sections.items():
            if rows:
                with formatter.section(heading):
                    formatter.write_dl([(name, text.replace("-", UNBROKEN)) for name, text in rows], col_max=formatter.width // 3)
        if not is_root:
            formatter.write_paragraph()
            formatter.write_text("Every command also has --json, -q, -v, --debug and --help; see freetf --help.")
        if self.examples:
            formatter.write(f"\nExamples:\n{self.examples}\n")


class ExampleCommand(_Page, TyperCommand):
    """A command with examples."""


class ExampleGroup(_Page, TyperGroup):
    """A group of commands with examples."""
