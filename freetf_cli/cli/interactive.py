"""`freetf sample --interactive`: lines of stdin change the prompt, Z or the tokens; both versions are shown side by side."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import typer

from freetf_cli.errors import InputError, nearest

if TYPE_CHECKING:
    from freetf_cli.generation.session import Session
    from freetf_cli.records import DataFacts
    from freetf_cli.records.samples import Sample

HELP = """\
prompt TEXT    another prompt, with the same Z
z              draw another Z from the prior, for the same prompt
like TEXT      infer Z from an example text
flip [N]       flip N random bits of Z; default: 1
flip T.B …     flip bit B of Z at position T; both count from 0
tokens         draw the tokens anew, with the same prompt and Z
codes          print Z
help, quit"""


@dataclass
class Shown:
    """The last sequences, and what they were made with."""

    title: str
    samples: Sequence[Sample]


def run_session(session: Session, facts: DataFacts, added: Mapping[str, Any], *, json: bool) -> None:
    """Read commands until the input ends or one of them is `quit`. added: fields of the records.

    On a terminal a wrong command is a warning; in a pipe it is an InputError.
    """
    from freetf_cli.report.console import note, warn

    at_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    before: Shown | None = None
    title = f"prompt {session.prompt!r}, first Z"
    note(HELP if at_terminal else "commands: see the line `help`")
    lines = _lines(at_terminal)
    while True:
        if title:
            now = Shown(title, [replace(sample, **added) for sample in session.sequences()])
            _show(before, now, facts, json=json)
            before = now
        line = next(lines, None)
        if line is None or line.strip() in ("quit", "exit"):
            return
        try:
            title = _change(session, line, json=json)
        except InputError as error:
            if not at_terminal:
                raise
            warn(str(error))
            title = ""


def _lines(at_terminal: bool) -> Iterator[str]:
    """Lines of stdin without their ends."""
    from freetf_cli.generation.replay import text_lines

    if not at_terminal:
        yield from (line for _, line in text_lines(sys.stdin.buffer, "stdin"))
        return
    with suppress(ImportError):
        import readline  # noqa: F401 (gives `input` a history)
    while True:
        try:
            line = input("> ")
        except EOFError:
            typer.echo("")
            return
        yield line


def _change(session: Session, line: str, *, json: bool) -> str:
    """Carry out a command. Returns what it changed; empty if nothing."""
    word, _, rest = line.lstrip().partition(" ")
    if not word:
        return ""
    if word in ("prompt", "like"):
        (session.change_prompt if word == "prompt" else session.infer_z)(rest)
        return f"prompt {rest!r}, same Z" if word == "prompt" else f"Z like {rest!r}"
    if word == "flip":
        return _flip(session, rest.split())
    changes: dict[str, tuple[Callable[[], None], str]] = {
        "z": (session.draw_z, "another Z"),
        "tokens": (session.draw_tokens, "other tokens, same Z"),
        "codes": (lambda: _print_codes(session, json=json), ""),
        "help": (lambda: typer.echo(HELP, err=True), ""),
    }
    if word not in changes:
        raise InputError(f"no command '{word}'", hint=nearest(word, [*changes, "prompt", "like", "flip", "quit"]))
    if rest.strip():
        raise InputError(f"'{word}' takes nothing after it, not '{rest.strip()}'")
    change, title = changes[word]
    change()
    return title


def _flip(session: Session, words: Sequence[str]) -> str:
    places = [re.fullmatch(r"(\d{1,9})\.(\d{1,3})", word) for word in words]
    if words and all(places):
        flipped = session.flip([(int(found[1]), int(found[2])) for found in places if found])
    elif len(words) <= 1 and all(re.fullmatch(r"\d{1,9}", word) for word in words):
        flipped = session.flip(count=int(words[0]) if words else 1)
    else:
        raise InputError(f"flip takes a number of bits, or POSITION.BIT, not '{' '.join(words)}'")
    named = " ".join(f"{position}.{bit}" for position, bit in flipped[:8]) + (" …" if len(flipped) > 8 else "")
    return f"flipped {named}"


def _print_codes(session: Session, *, json: bool) -> None:
    from freetf_cli.records import to_json
    from freetf_cli.records.samples import HeldZ

    held = HeldZ(session.prompt, session.z)
    typer.echo(to_json(held) if json else " ".join(map(str, session.z)))


def _show(before: Shown | None, now: Shown, facts: DataFacts, *, json: bool) -> None:
    """Print the sequences: records, lines in a pipe, and on a terminal boxes beside those from before the change."""
    from freetf_cli.records import to_json
    from freetf_cli.records.samples import box, line_spans
    from freetf_cli.report import terminal
    from freetf_cli.report.blocks import Samples
    from freetf_cli.tasks import spans_by_text

    if json:
        for sample in now.samples:
            typer.echo(to_json(sample))
        return
    shown = [one for one in (before, now) if one is not None]
    spans = spans_by_text(facts.task, facts.params, [sample.text for one in shown for sample in one.samples])
    if sys.stdout.isatty():
        boxes = [box(one.title, [sample.text for sample in one.samples], one.samples[0].prompt, shared=True, spans=spans) for one in shown]
        terminal.show_blocks([Samples(boxes, beside=True)])
        return
    for sample in now.samples:
        terminal.show_line(line_spans(sample.text, sample.prompt, spans))
