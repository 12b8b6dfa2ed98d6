"""Runs generated code in a separate process, confined as far as the kernel allows, and returns how it ended.

    what it must not do         what stops it                                       if the kernel cannot
    run forever                 a time-out, and a limit on CPU time                 the same
    take all memory or disk     limits on address space and on the size of files    the same
    start processes             a process limit of 0, in a PID namespace                Python's audit hook
    write outside its folder    Landlock (Linux 5.13); another user if run as root  Python's audit hook
    reach the network           a network namespace, and Landlock (Linux 6.7)       Python's audit hook

The audit hook is always installed, but malicious code can bypass it. Where it is the only protection (see `confinement`), run generated
code only on a disposable machine. All files are readable. A program passes if it runs to its end without an exception. The process then
reports this with a random token, so that leaving early, as by `exit()`, does not pass.

The separate process runs this file (`python -I sandbox.py`), so it imports the standard library only.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

PASSED, TIMED_OUT = "passed", "timed out"
CONFINED = ("processes", "files", "network")  # what the kernel can confine
_LEAST_UID = 1 << 20  # above the user ids that systems assign, so these users own no files
# From linux/sched.h, linux/prctl.h, linux/landlock.h and linux/capability.h. The system call numbers are the same on all architectures.
_CLONE_NEWIPC, _CLONE_NEWUSER, _CLONE_NEWPID, _CLONE_NEWNET = 0x08000000, 0x10000000, 0x20000000, 0x40000000
_PDEATHSIG, _KEEPCAPS, _NO_NEW_PRIVS = 1, 8, 38
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_READ_DIR, _READ_FILE, _EXECUTE = 1 << 3, 1 << 2, 1 << 0
_FS_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}  # number of access rights by version of Landlock's ABI; 16 from version 5 on
_CAPABILITY_VERSION, _DAC_READ_SEARCH = 0x20080522, 1 << 2


@dataclass(frozen=True)
class Limits:
    """Limits on a program. seconds: wall-clock time. memory: address space in bytes. file: size of a file in bytes."""

    seconds: float = 10.0
    memory: int = 1 << 30
    file: int = 16 << 20


def run(program: str, limits: Limits | None = None) -> str:
    """Run a Python program. Returns PASSED, TIMED_OUT, or what went wrong, such as `AssertionError: …`."""
    limits, token = limits or Limits(), secrets.token_hex(16)
    folder = Path(tempfile.mkdtemp(prefix="freetf-code-"))
    read, write = os.pipe()
    try:
        asked = {"folder": str(folder), "token": token, "program": program, "verdict": write, **asdict(limits)}
        quiet: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True, "pass_fds": (write,)}
        environment = {"PATH": os.defpath, "HOME": str(folder), "TMPDIR": str(folder), "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-I", "-B", __file__]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment, cwd=folder, **quiet)
        os.close(write)
        write = -1
        try:
            process.communicate(json.dumps(asked).encode(), timeout=limits.seconds)
        except subprocess.TimeoutExpired:
            return TIMED_OUT
        finally:
            _kill(process)
        return _verdict(os.read(read, 4096), token, process.returncode)
    finally:
        os.close(read)
        if write >= 0:
            os.close(write)
        shutil.rmtree(folder, ignore_errors=True)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the process group if the process still runs. The kernel ends a PID namespace together with its first process."""
    if process.returncode is None:  # otherwise its PID may have been reused
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _verdict(said: bytes, token: str, code: int) -> str:
    """The outcome that the process reported. A report without the token does not come from `_execute`."""
    try:
        found = json.loads(said)
    except ValueError:
        return f"ended early with exit code {code}"
    return str(found["outcome"]) if isinstance(found, dict) and found.get("token") == token else "ended early"


def confinement() -> list[str]:
    """The members of CONFINED that the kernel of this machine confines."""
    probe = "import json; json.dump(CONFINED, open('confined', 'w'))"
    found = run(f"{probe}\nraise RuntimeError(open('confined').read())", Limits(seconds=30.0))
    try:
        return list(json.loads(found.partition(": ")[2]))
    except ValueError:
        return []


def main() -> NoReturn:
    """The separate process: reads the program and its limits from stdin, confines itself, runs the program and reports how it ended."""
    asked = json.loads(sys.stdin.buffer.read())
    libc = ctypes.CDLL(None, use_errno=True)
    confined = ["processes", "network"] if _namespaces(libc, asked["folder"]) else []
    child = os.fork()  # the first process of the PID namespace; the kernel ends the others with it
    if child:
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    if hasattr(libc, "prctl"):
        libc.prctl(_PDEATHSIG, signal.SIGKILL)
        libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0)
    os.chdir(asked["folder"])
    if _landlock(libc, asked["folder"]):
        confined.append("files")
    _limit(asked)
    sys.addaudithook(_Guard(asked["folder"]))
    _execute(asked, confined)


def _execute(asked: dict[str, Any], confined: list[str]) -> NoReturn:
    outcome = PASSED
    try:
        exec(compile(asked["program"], "<program>", "exec"), {"__name__": "__program__", "CONFINED": confined})
    except BaseException as error:  # SystemExit too: the program has not run to its end
        outcome = f"{type(error).__name__}: {error}"[:300]  # escaped as JSON, still shorter than the 4096 bytes that `run` reads
    os.write(asked["verdict"], json.dumps({"token": asked["token"], "outcome": outcome}).encode())
    os._exit(0)


def _namespaces(libc: Any, folder: str) -> bool:
    """Enter new network, PID and IPC namespaces, and give up root for an unused user. Returns whether the namespaces were created."""
    if not hasattr(libc, "unshare"):
        return False
    flags, root = _CLONE_NEWNET | _CLONE_NEWPID | _CLONE_NEWIPC, os.geteuid() == 0
    done = root and libc.unshare(flags) == 0
    if root:
        user = _LEAST_UID + os.getpid()
        os.chown(folder, user, user)
        libc.prctl(_KEEPCAPS, 1, 0, 0, 0)
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
        # Keep only CAP_DAC_READ_SEARCH, since the interpreter may be in a folder that only root can read. Without CAP_SYS_RESOURCE and
        # CAP_SYS_ADMIN, RLIMIT_NPROC applies.
        header, sets = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0), (ctypes.c_uint32 * 6)(_DAC_READ_SEARCH, _DAC_READ_SEARCH)
        libc.capset(header, sets)
    return bool(done or libc.unshare(_CLONE_NEWUSER | flags) == 0)


def _landlock(libc: Any, folder: str) -> bool:
    """Allow reading everywhere and writing in the folder only, and forbid TCP if the kernel can. Returns whether files are confined."""
    version = libc.syscall(_CREATE_RULESET, None, 0, 1) if sys.platform == "linux" else 0
    if version < 1:
        return False
    rights = (1 << _FS_RIGHTS.get(version, 16)) - 1
    attributes = (ctypes.c_uint64 * 3)(rights, 3 if version >= 4 else 0, 3 if version >= 6 else 0)  # files; TCP; signals and sockets
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = libc.syscall(_CREATE_RULESET, attributes, size, 0)
    for path, allowed in (("/", _READ_DIR | _READ_FILE | _EXECUTE), (folder, rights)):
        beneath = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        rule = allowed.to_bytes(8, sys.byteorder) + beneath.to_bytes(4, sys.byteorder)
        if libc.syscall(_ADD_RULE, ruleset, 1, rule, 0) != 0:
            return False
        os.close(beneath)
    return bool(libc.syscall(_RESTRICT_SELF, ruleset, 0) == 0)


def _limit(asked: dict[str, Any]) -> None:
    seconds = int(asked["seconds"]) + 1
    for name, value in (("CPU", seconds), ("AS", asked["memory"]), ("FSIZE", asked["file"]), ("NOFILE", 64), ("CORE", 0), ("NPROC", 0)):
        kind, (_, most) = getattr(resource, f"RLIMIT_{name}"), resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))
        value = value if most == resource.RLIM_INFINITY else min(value, most)
        try:
            resource.setrlimit(kind, (value, value))
        except (ValueError, OSError):  # macOS has no limit on the address space
            pass


class _Guard:
    """An audit hook that refuses to start processes, to use sockets, and to change files outside the folder."""

    REFUSED = ("socket.", "subprocess.", "os.fork", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "os.kill", "pty.")
    CHANGES = (
        "os.remove",
        "os.rename",
        "os.rmdir",
        "os.mkdir",
        "os.link",
        "os.symlink",
        "os.chmod",
        "os.chown",
        "os.truncate",
        "os.utime",
        "shutil.",
    )

    def __init__(self, folder: str) -> None:
        self._folder, self._inside = folder, os.path.realpath(folder) + os.sep

    def __call__(self, event: str, values: tuple[Any, ...]) -> None:
        if event.startswith(self.REFUSED):
            raise PermissionError(f"generated code may not use {event}")
        writes = event == "open" and (values[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        if writes or event.startswith(self.CHANGES):
            for path in values[:2] if event.startswith(("os.rename", "os.link", "os.symlink")) else values[:1]:
                if isinstance(path, str | bytes | os.PathLike) and not self._is_inside(os.fsdecode(path)):
                    raise PermissionError(f"generated code may write to its own folder only: {event} {path!r}")

    def _is_inside(self, path: str) -> bool:
        return os.path.realpath(Path(self._folder, path)).startswith(self._inside)


if __name__ == "__main__":
    main()
