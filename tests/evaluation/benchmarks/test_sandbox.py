"""The sandbox of generated code. Programs that go around Python's audit hook by ctypes show what the kernel alone stops."""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from freetf_cli.evaluation.benchmarks.sandbox import PASSED, TIMED_OUT, Limits, confinement, run

SHORT = Limits(seconds=1.5)
LIBC = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"


@pytest.fixture(scope="module")
def confined() -> list[str]:
    return confinement()


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def needs(confined: list[str], what: str) -> None:
    if what not in confined:
        pytest.skip(f"this kernel does not confine {what}")


def test_what_the_kernel_offers_is_used(confined: list[str]) -> None:
    """Where Landlock answers, and `unshare` may create namespaces, their confinement is on: none of the tests below is left out."""
    libc = ctypes.CDLL(None)
    if sys.platform == "linux" and libc.syscall(444, None, 0, 1) > 0:
        assert "files" in confined
    if (
        shutil.which("unshare")
        and subprocess.run(["unshare", "--user", "--net", "--pid", "--fork", "true"], capture_output=True).returncode == 0
    ):
        assert {"processes", "network"} <= set(confined)


@pytest.mark.parametrize(
    ("program", "outcome"),
    [
        ("import math, re, json, collections, typing, random\nassert math.sqrt(4) == 2", PASSED),
        ("with open('own.txt', 'w') as f: f.write('x')\nimport os\nos.rename('own.txt', 'b')\nassert open('b').read() == 'x'", PASSED),
        ("assert 1 == 2, 'no'", "AssertionError: no"),
        ("def f(:", "SyntaxError"),
        ("exit(0)", "SystemExit: 0"),
        ("import os\nos._exit(0)", "ended early"),
        ("import os, signal\nos.abort()", "ended early"),
        ("def f(): f()\nf()", "RecursionError"),
        ("x = 'a' * (1 << 31)", "MemoryError"),
        ("open('big', 'wb').write(b'x' * (1 << 25))", "OSError"),
        ("import threading\nthreading.Thread(target=print).start()", "RuntimeError: can't start new thread"),
        ("print('x' * 100000)\nimport sys\nsys.stderr.write('y' * 100000)", PASSED),
        ("raise ValueError('é' * 5000)", "ValueError: éé"),
    ],
)
def test_how_programs_end(program: str, outcome: str) -> None:
    assert run(program, SHORT).startswith(outcome)


@pytest.mark.parametrize(
    "program", ["while True: pass", "import time\ntime.sleep(60)", "try:\n  while True: pass\nexcept BaseException: pass"]
)
def test_an_endless_program_ends(program: str) -> None:
    started = time.monotonic()
    assert run(program, Limits(seconds=0.7)) == TIMED_OUT
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "start", ["os.fork()", "os.system('true')", "__import__('subprocess').run(['true'])", "os.posix_spawn('/bin/true', ['true'], {})"]
)
def test_no_process_is_started(start: str) -> None:
    assert run(f"import os\n{start}", SHORT).startswith("PermissionError: generated code may not use")


def test_a_fork_bomb_by_the_kernels_measure(confined: list[str]) -> None:
    needs(confined, "processes")
    before = len(names(Path("/proc")))
    assert run(LIBC + "for _ in range(100):\n    assert libc.fork() == -1, 'forked'", SHORT) == PASSED
    assert run(LIBC + "while True: libc.fork()", SHORT) == TIMED_OUT
    assert len(names(Path("/proc"))) < before + 20


def test_processes_outside_cannot_be_seen_or_ended(confined: list[str]) -> None:
    needs(confined, "processes")
    assert run(LIBC + f"assert libc.kill({os.getpid()}, 0) == -1 and libc.getpid() == 1", SHORT) == PASSED


@pytest.mark.parametrize(
    "change",
    [
        "open({!r}, 'w')",
        "open({!r}, 'a')",
        "os.remove({!r})",
        "os.rename({!r}, 'own')",
        "os.chmod({!r}, 0)",
        "os.truncate({!r}, 0)",
        "os.symlink('x', {!r} + '2')",
    ],
)
def test_nothing_is_written_outside(tmp_path: Path, change: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("whole", encoding="utf-8")
    mode = victim.stat().st_mode
    assert run(f"import os\n{change.format(str(victim))}", SHORT).startswith("PermissionError")
    assert victim.read_text(encoding="utf-8") == "whole" and victim.stat().st_mode == mode
    assert names(tmp_path) == ["victim"]


def test_the_kernel_refuses_to_write_outside(tmp_path: Path, confined: list[str]) -> None:
    needs(confined, "files")
    tmp_path.chmod(0o777)
    victim = tmp_path / "victim"
    victim.write_text("whole", encoding="utf-8")
    victim.chmod(0o666)
    escape = f"for flags in (1, 2, 0o1001):\n    assert libc.open({str(victim).encode()!r}, flags) == -1, 'opened'\n"
    escape += f"assert libc.open({str(tmp_path / 'new').encode()!r}, 0o101, 0o644) == -1 and libc.unlink({str(victim).encode()!r}) == -1\n"
    escape += f"assert libc.open({str(victim).encode()!r}, 0) > 0 and libc.open(b'own', 0o101, 0o644) > 0"
    assert run(LIBC + escape, SHORT) == PASSED
    assert victim.read_text(encoding="utf-8") == "whole" and names(tmp_path) == ["victim"]


def test_no_link_leads_outside(tmp_path: Path) -> None:
    program = f"import os\nos.symlink({str(tmp_path)!r}, 'link')\nopen('link/new', 'w')"
    assert run(program, SHORT).startswith("PermissionError") and names(tmp_path) == []


def test_no_socket() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.settimeout(0.3)
        asked = run(f"import socket\nsocket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 1)", SHORT)
        assert asked.startswith("PermissionError: generated code may not use socket")
        with pytest.raises(TimeoutError):
            server.accept()


def test_the_kernel_refuses_connections(confined: list[str]) -> None:
    needs(confined, "network")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.settimeout(0.3)
        port = server.getsockname()[1]
        address = f"struct.pack('=H', 2) + struct.pack('>HI8x', {port}, 0x7f000001)"
        program = f"import struct\nend = libc.socket(2, 1, 0)\nassert end > 0 and libc.connect(end, {address}, 16) == -1, 'connected'"
        assert run(LIBC + program, SHORT) == PASSED
        with pytest.raises(TimeoutError):
            server.accept()


def test_the_report_cannot_be_forged() -> None:
    """A program that writes a verdict of its own to every open file does not pass."""
    verdict = "json.dumps({'token': '', 'outcome': 'passed'}).encode()"
    forge = f"import os, json\nfor fd in range(3, 64):\n  try: os.write(fd, {verdict})\n  except OSError: pass\nos._exit(0)"
    assert run(forge, SHORT).startswith("ended early")


def test_the_folder_is_gone_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for program in ("open('left', 'w')", "while True: pass", "import os\nos.mkdir('a')\nopen('a/b', 'w')\nos.chmod('a', 0)"):
        run(program, Limits(seconds=0.7))
        assert names(tmp_path) == []
