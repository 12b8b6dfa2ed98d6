"""Trials of commands: where their output goes, and what they are given to read."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from freetf_cli.checkpoint import checkpoint_folders
from freetf_cli.cli.app import main as freetf
from freetf_cli.recipe_file import load_recipe
from tests.reliability.world import (
    Tally,
    forked,
    go,
    hashed,
    quiet,
    tiny,
)


def outputs(count: int, folder: Path) -> dict[str, Any]:
    """Every command with its reader gone, a full disk behind stdout, 20 columns, an ASCII terminal: no traceback, and the exit code."""
    recipe = tiny(folder)
    assert forked(lambda: go(load_recipe(str(recipe)), folder / "whole")) == 0
    run = str(folder / "whole")
    commands = [
        ["show", run],
        ["sample", run, "--prompt", "A>", "-n", "3", "--device", "cpu"],
        ["compare", run, run, "--device", "cpu"],
        ["evaluate", run, "--task", "likelihood", "--device", "cpu"],
        ["probe-latent", run, "-g", "20", "-n", "2", "--device", "cpu"],
        ["gen-synthetic", "letters", "-o", "-", "--count", "50"],
        ["recipe", "list"],
        ["recipe", "schema"],
        ["recipe", "show", "letters-free"],
        ["recipe", "diff", "letters-free", "letters-baseline"],
        ["train", str(recipe), "--dry-run"],
        ["doctor"],
    ]
    forms = [[*words, *more] for more in ([], ["--json"]) for words in commands if not more or words[0] != "recipe" or words[1] != "schema"]
    sinks = ("reader gone", "full", "narrow", "ascii")
    tally = Tally()
    for number in range(count):
        words, sink = forms[number % len(forms)], sinks[number // len(forms) % 4]
        said = folder / "said"

        def work(words: list[str] = words, sink: str = sink) -> int:
            if sink == "reader gone":
                reader, writer = os.pipe()
                os.close(reader)
                os.dup2(writer, 1)
            elif sink == "full":
                os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
            elif sink == "narrow":
                os.environ.update(COLUMNS="20", NO_COLOR="1")
            else:
                for stream in (sys.stdout, sys.stderr):
                    stream.reconfigure(encoding="ascii")  # type: ignore[union-attr]
            code = freetf(words)
            try:
                sys.stdout.flush()
            except OSError:
                code = 120  # as the interpreter would
            return code

        code = forked(work, said)
        text = said.read_bytes()
        wanted = {"reader gone": (141,), "full": (1,), "narrow": (0, 1), "ascii": (0, 1)}[sink]
        good = code in wanted and b"Traceback" not in text and b"internal error" not in text
        tally.add(good, f"{' '.join(words[:2])} {words[-1]}, {sink}: exit {code}: {text[-300:]!r}")
    return {**tally.record(), "forms": len(forms) * len(sinks)}


def inputs(count: int, folder: Path) -> dict[str, Any]:
    """No UTF-8, a byte order mark, nothing, CRLF, NUL, a line of a megabyte: to every command that reads a file or stdin."""
    recipe = tiny(folder)
    assert forked(lambda: go(load_recipe(str(recipe)), folder / "whole")) == 0
    run, row = str(folder / "whole"), b'{"z": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]}'
    contents = [
        b"\xff\xfe\xfa caf\xe9",
        b"\xef\xbb\xbfA>",
        b"",
        b"A>\r\nB>\r\n",
        b"A>\0\0",
        b"A" * (1 << 20),
        b"\r\n\r\n",
        row + b"\r\n",
        b"\x1b[2J\x07",
    ]
    forms: list[Callable[[str, str], list[str]]] = [
        lambda path, out: ["prepare", path, "-o", out, "-q"],
        lambda path, out: ["prepare", "-", "-o", out, "-q"],
        lambda path, out: ["prepare", path, "-o", out, "-q", "--tokenizer", path],
        lambda path, out: ["prepare", "-", "-o", out, "-q", "--field", "text"],
        lambda path, out: ["sample", run, "--prompt", "-", "--device", "cpu"],
        lambda path, out: ["sample", run, "--prompt", "A>", "--z", path, "--device", "cpu"],
        lambda path, out: ["sample", run, "--prompt", "A>", "--z", "-", "--device", "cpu"],
        lambda path, out: ["train", path, "-o", out, "-q", "--device", "cpu"],
        lambda path, out: ["recipe", "show", path],
        lambda path, out: ["show", path],
        lambda path, out: ["compare", path, path],
    ]
    tally = Tally()
    for number in range(count):
        content, form = contents[number % len(contents)], forms[number // len(contents) % len(forms)]
        path, said = folder / f"given-{number}.jsonl", folder / "said"
        path.write_bytes(content)

        def work(words: list[str], path: Path = path) -> int:
            os.dup2(os.open(path, os.O_RDONLY), 0)
            sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
            return freetf(words)

        words = form(str(path), str(folder / f"out-{number}"))
        code = forked(partial(work, words), said)
        text = said.read_bytes()
        good = code in (0, 2) and b"Traceback" not in text and b"internal error" not in text and (code == 0 or b"freetf: error: " in text)
        tally.add(good and (code == 0 or b"\x1b" not in text), f"{words[:2]} {content[:12]!r}: exit {code}: {text[-300:]!r}")
    bad = folder / "swapped"
    shutil.copytree(folder / "whole", bad)
    newest = checkpoint_folders(bad)[-1]
    tokens = (newest / "tokenizer.json").read_bytes()
    hashed(newest, "tokenizer.json", tokens.replace(b'"A"', b'"Q"'))
    code, said = quiet(["train", str(recipe), "-o", str(bad), "--resume", str(newest), "-q", "--device", "cpu"])
    tally.add(code == 2 and "tokenizer" in said and (newest / "tokenizer.json").stat().st_size == len(tokens), f"tokenizer swapped: {said}")
    return {**tally.record(), "forms": len(contents) * len(forms)}
