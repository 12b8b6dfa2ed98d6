"""Several commands at a time: their output, their exit codes, and what stops them."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from freetf_cli.errors import Interrupted, Stopped
from freetf_cli.training import pool
from freetf_cli.training.pool import Job, run_jobs


@pytest.fixture(autouse=True)
def python_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The words of a job are Python code: a process starts at once."""
    monkeypatch.setattr(pool, "freetf_command", lambda words: [sys.executable, "-S", "-c", *words])
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def jobs(folder: Path, *programs: str) -> list[Job]:
    return [Job([program], folder / f"{number}.log") for number, program in enumerate(programs)]


def test_a_failed_job_is_reported_and_the_others_run(tmp_path: Path) -> None:
    found: dict[int, int] = {}
    all_jobs = jobs(tmp_path, "print('one')", "import sys; print('why\\n', file=sys.stderr); sys.exit(7)", "print('three')")
    run_jobs(all_jobs, 2, found.__setitem__)
    assert found == {0: 0, 1: 7, 2: 0}
    assert [job.last_line() for job in all_jobs] == ["one", "why", "three"]
    run_jobs(all_jobs[:1], 1, found.__setitem__)
    assert all_jobs[0].log.read_text() == "one\none\n"  # a resumed run adds to its log


def test_at_most_n_jobs_run_at_a_time_and_share_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "cores", lambda: 8)
    program = "import os, time; print(time.time(), flush=True); time.sleep(0.2); print(time.time(), os.environ['OMP_NUM_THREADS'])"
    all_jobs = jobs(tmp_path, *[program] * 4)
    run_jobs(all_jobs, 2, lambda index, code: None)
    times = [[float(line.split()[0]) for line in job.log.read_text().splitlines()] for job in all_jobs]
    assert max(sum(start <= moment < end for start, end in times) for moment, _ in times) == 2
    assert {job.last_line().split()[1] for job in all_jobs} == {"4"}
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    run_jobs(all_jobs[:1], 2, lambda index, code: None)
    assert all_jobs[0].last_line().endswith(" 3")


WAITS = "import signal, sys, time; signal.signal(signal.{name}, lambda *_: sys.exit(75)); print('ready', flush=True); time.sleep(60)"
STAYS = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"


def send_once_ready(all_jobs: list[Job], *numbers: signal.Signals) -> None:
    def send() -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and not all(job.log.is_file() and job.log.read_text() for job in all_jobs):
            time.sleep(0.02)
        for number in numbers:
            os.kill(os.getpid(), number)
            time.sleep(0.2)

    threading.Thread(target=send, daemon=True).start()


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, Interrupted), (signal.SIGTERM, Stopped)])
def test_a_signal_stops_all_and_starts_no_more(tmp_path: Path, number: signal.Signals, error: type[Exception]) -> None:
    found: dict[int, int] = {}
    all_jobs = jobs(tmp_path, *[WAITS.format(name=number.name)] * 2, "print('never')")
    before = signal.getsignal(number)
    send_once_ready(all_jobs[:2], number)
    with pytest.raises(error, match=number.name):
        run_jobs(all_jobs, 2, found.__setitem__)
    assert found == {0: 75, 1: 75}
    assert not all_jobs[2].log.exists()
    assert signal.getsignal(number) is before


def test_a_second_interrupt_kills(tmp_path: Path) -> None:
    found: dict[int, int] = {}
    all_jobs = jobs(tmp_path, STAYS)
    send_once_ready(all_jobs, signal.SIGINT, signal.SIGINT)
    with pytest.raises(Interrupted):
        run_jobs(all_jobs, 1, found.__setitem__)
    assert found == {0: -signal.SIGKILL}


def test_jobs_are_stopped_if_the_caller_fails(tmp_path: Path) -> None:
    def ended(index: int, code: int) -> None:
        raise BrokenPipeError

    all_jobs = jobs(tmp_path, "import time; time.sleep(60)", "pass")
    start = time.monotonic()
    with pytest.raises(BrokenPipeError):
        run_jobs(all_jobs, 2, ended)
    assert time.monotonic() - start < 20
