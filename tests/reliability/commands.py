"""Trials of commands: where their output goes, and what they read."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from freetf_cli.cli.app import main as freetf
from freetf_cli.config.files import load_recipe
from freetf_cli.runs.checkpoint import checkpoint_folders
from freetf_cli.training.step import TrainStep
from tests.reliability.world import (
    FEW,
    Tally,
    call_at,
    forked,
    go,
    hashed,
    quiet,
    same,
    tiny,
)

NEW = "NEW"  # stands for a path that does not exist


def outputs(count: int, folder: Path) -> dict[str, Any]:
    """Every command with a closed pipe, a full disk or nothing as stdout, 20 columns, ASCII: no traceback, the right exit code."""
    recipe = tiny(folder)
    assert forked(lambda: go(load_recipe(str(recipe)), folder / "whole")) == 0
    run, text = str(folder / "whole"), folder / "text.txt"
    text.write_text("a line of text\n" * 40)
    commands = [
        ["show", run],
        ["sample", run, "--prompt", "A>", "-n", "3", "--device", "cpu"],
        ["compare", run, run, "--device", "cpu", *FEW],
        ["evaluate", run, "--task", "likelihood", "--device", "cpu", *FEW],
        ["probe-latent", run, "-g", "20", "-n", "2", "--sequences", "64", "--device", "cpu"],
        ["gen-synthetic", "letters", "-o", "-", "--count", "50"],
        ["recipe", "list"],
        ["recipe", "schema"],
        ["recipe", "show", "letters-free"],
        ["recipe", "diff", "letters-free", "letters-baseline"],
        ["train", str(recipe), "--dry-run"],
        ["train", str(recipe), "-o", NEW, "--device", "cpu"],
        ["prepare", str(text), "-o", NEW],
        ["gen-synthetic", "letters", "-o", NEW, "--count", "50"],
        ["bench", "train", str(recipe), "--steps", "1", "--repeats", "1", "--device", "cpu"],
        ["bench", "sample", str(recipe), "--batch", "1", "--repeats", "1", "--device", "cpu"],
        ["bench", "mapper", "--tokens", "8", "--width", "8", "--bits", "8", "--steps", "1", "--repeats", "1", "--device", "cpu"],
        ["doctor"],
    ]
    forms = [[*words, *more] for more in ([], ["--json"]) for words in commands if not more or words[0] != "recipe" or words[1] != "schema"]
    sinks = ("reader gone", "full", "narrow", "ascii", "closed")
    tally = Tally()
    for number in range(count):
        words, sink = forms[number % len(forms)], sinks[(number + number // len(forms)) % len(sinks)]
        output, words = folder / "output", [word.replace(NEW, str(folder / f"new-{number}")) for word in words]

        def work(words: list[str] = words, sink: str = sink) -> int:
            if sink == "reader gone":
                reader, writer = os.pipe()
                os.close(reader)
                os.dup2(writer, 1)
            elif sink == "full":
                os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
            elif sink == "narrow":
                os.environ.update(COLUMNS="20", NO_COLOR="1")
            elif sink == "closed":
                os.close(1)
                sys.stdout = None  # type: ignore[assignment]  # as the interpreter sets it
            else:
                for stream in (sys.stdout, sys.stderr):
                    stream.reconfigure(encoding="ascii")  # type: ignore[union-attr]
            code = freetf(words)
            if sink == "closed":
                os._exit(code)
            try:
                sys.stdout.flush()
            except OSError:
                code = 120  # as the interpreter does
            return code

        code = forked(work, output)
        text = output.read_bytes()
        expected = {"reader gone": (141,), "full": (1,), "narrow": (0, 1), "ascii": (0, 1), "closed": (1,)}[sink]
        good = code in expected and b"Traceback" not in text and b"internal error" not in text
        tally.add(good, f"{' '.join(words[:2])} {words[-1]}, {sink}: exit {code}: {text[-300:]!r}")
    return {**tally.record(), "forms": len(forms) * len(sinks)}


def listeners(count: int, folder: Path) -> dict[str, Any]:
    """Training whose stderr has no reader, is full, or is closed on the way: the run ends normally."""
    recipe, tally = tiny(folder), Tally()
    assert forked(lambda: go(load_recipe(str(recipe)), folder / "whole")) == 0
    for number in range(count):
        run, kind = folder / f"run-{number}", ("gone", "full", "leaves", "closed")[number % 4]
        words = ["train", str(recipe), "-o", str(run), "--device", "cpu", "--set", "train.log_every=1"]

        def work(kind: str = kind, words: list[str] = words) -> int:
            reader, writer = os.pipe()
            os.dup2(os.open("/dev/full", os.O_WRONLY) if kind == "full" else writer, 2)
            if kind == "gone":
                os.close(reader)
            elif kind == "leaves":
                call_at(TrainStep, "_update", 5, lambda: os.close(reader))
            elif kind == "closed":
                os.close(2)
            sys.stderr = None if kind == "closed" else os.fdopen(2, "w")  # type: ignore[assignment]  # as the interpreter sets it
            return freetf(words)

        code = forked(work)
        tally.add(code == 0 and same(run, folder / "whole"), f"stderr {kind}: exit {code}")
    return tally.record()


def readonly(count: int, folder: Path) -> dict[str, Any]:
    """A user without write permission: one line that names the folder, exit 1 or 2, and no files left behind."""
    with tempfile.TemporaryDirectory() as own:  # which another user may enter
        Path(own).chmod(0o755)
        return _readonly(count, Path(own))


def _readonly(count: int, folder: Path) -> dict[str, Any]:
    scratch, folder = folder / "scratch", folder / "closed"
    scratch.mkdir()
    folder.mkdir()
    recipe, tally = tiny(folder), Tally()
    assert forked(lambda: go(load_recipe(str(recipe)), folder / "whole")) == 0
    run, place = folder / "whole", folder / "place"
    (folder / "text.txt").write_text("a line\n" * 50)
    place.mkdir()
    commands = [
        ["train", str(recipe), "-o", str(place / "run"), "-q", "--device", "cpu"],
        ["train", str(recipe), "-o", str(run), "-q", "--device", "cpu", "--resume", "auto"],
        ["gen-synthetic", "letters", "-o", str(place / "data"), "--count", "20"],
        ["gen-synthetic", "letters", "-o", str(place / "rows.jsonl"), "--count", "20"],
        ["prepare", str(folder / "text.txt"), "-o", str(place / "data")],
        ["probe-latent", str(run), "-g", "20", "-n", "2", "--sequences", "64", "--device", "cpu", "--report", str(place / "probe.html")],
        ["compare", str(run), str(run), "--device", "cpu", *FEW, "--report", str(place / "compare.html")],
    ]
    for words in commands:  # imports modules that the other user may not be able to read
        quiet(
            [word.replace(str(place), str(scratch)).replace(f"{run}", str(run if "-o" not in words else scratch / "run")) for word in words]
        )
    before = listing(folder)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    for number in range(count):
        words = commands[number % len(commands)]

        def work(words: list[str] = words) -> int:
            if os.geteuid() == 0:  # root may write everywhere
                os.setuid(65534)
            code, output = quiet(words)
            refused = any(phrase in output for phrase in ("permission denied", "cannot be written", "not writable"))
            return 0 if code in (1, 2) and output.count("\n") == 1 and refused and str(folder) in output else 70

        code = forked(work)
        tally.add(code == 0 and listing(folder) == before, f"{' '.join(words[:2])}: {code}, {sorted(listing(folder) - before)}")
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return tally.record()


def listing(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*")}


def inputs(count: int, folder: Path) -> dict[str, Any]:
    """Invalid UTF-8, a byte order mark, no content, CRLF, NUL, a line of a megabyte: to every command that reads a file or stdin."""
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
        at = number * 10 % (len(contents) * len(forms))  # so that a few trials take every content and every command
        content, form = contents[at % len(contents)], forms[at // len(contents)]
        path, output = folder / f"given-{number}.jsonl", folder / "output"
        path.write_bytes(content)

        def work(words: list[str], path: Path = path) -> int:
            os.dup2(os.open(path, os.O_RDONLY), 0)
            sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
            return freetf(words)

        words = form(str(path), str(folder / f"out-{number}"))
        code = forked(partial(work, words), output)
        text = output.read_bytes()
        good = code in (0, 2) and b"Traceback" not in text and b"internal error" not in text and (code == 0 or b"freetf: error: " in text)
        tally.add(good and (code == 0 or b"\x1b" not in text), f"{words[:2]} {content[:12]!r}: exit {code}: {text[-300:]!r}")
    bad = folder / "swapped"
    shutil.copytree(folder / "whole", bad)
    newest = checkpoint_folders(bad)[-1]
    tokens = (newest / "tokenizer.json").read_bytes()
    hashed(newest, "tokenizer.json", tokens.replace(b'"A"', b'"Q"'))
    code, output = quiet(["train", str(recipe), "-o", str(bad), "--resume", str(newest), "-q", "--device", "cpu"])
    tally.add(
        code == 2 and "tokenizer" in output and (newest / "tokenizer.json").stat().st_size == len(tokens), f"tokenizer swapped: {output}"
    )
    return {**tally.record(), "forms": len(contents) * len(forms)}
