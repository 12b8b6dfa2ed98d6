"""Growth of host memory: what is a leak, and what is not."""

from __future__ import annotations

import json
import mmap
import random
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from freetf_cli.training import growth as growth_module
from freetf_cli.training.growth import Growth, gpu_peak, host_memory
from freetf_cli.training.loop import Hooks
from freetf_cli.training.run import train
from tests.training.test_loop import CPU, recipe

MIB, GIB = 2**20, 2**30


def warnings(values: Iterable[float], log_every: int = 10) -> list[tuple[int, str]]:
    """The step and the words of each warning."""
    growth, found = Growth(), []
    for number, value in enumerate(values, start=1):
        growth.add(number * log_every, int(value))
        if words := growth.warning():
            found.append((number * log_every, words))
    return found


def test_a_leak_is_said_once_with_its_rate() -> None:
    found = warnings(3 * GIB + 20 * MIB * n for n in range(2000))
    assert len(found) == 1
    step, words = found[0]
    assert step == 600
    assert "grows steadily: by 1,000.0 MiB from step 10 to step 510, 2.0 MiB per step" in words
    assert "timing.jsonl" in words


@pytest.mark.parametrize("per_record", [0.5, 1.0, 4.0, 20.0])
def test_slow_and_noisy_leaks_are_found(per_record: float) -> None:
    """Under noise of 100 MiB. The slowest adds 256 MiB in 512 records, and a fifth of 1 GiB before that."""
    noise = random.Random(0)
    values = [GIB + per_record * MIB * n + noise.uniform(0, 100) * MIB for n in range(3000)]
    assert len(warnings(values)) == 1


def test_a_leak_that_begins_late_is_found() -> None:
    assert len(warnings([2 * GIB] * 500 + [2 * GIB + 10 * MIB * n for n in range(600)])) == 1


def test_a_leak_of_every_evaluation_is_found() -> None:
    assert len(warnings(GIB + 100 * MIB * (n // 20) for n in range(600))) == 1


NO_LEAKS = {
    "plateau": [2 * GIB] * 3000,
    "noise": [2 * GIB + random.Random(n).uniform(0, 1) * GIB for n in range(3000)],
    "a climb to a plateau": [2 * GIB + min(n, 30) * 50 * MIB for n in range(3000)],
    "one jump, at a first checkpoint": [2 * GIB + 40 * GIB * (n > 100) for n in range(3000)],
    "two jumps": [2 * GIB + 4 * GIB * ((n > 400) + (n > 800)) for n in range(3000)],
    "it levels off": [2 * GIB + 3 * GIB * float(1 - np.exp(-n / 20)) for n in range(3000)],
    "too little": [8 * GIB + MIB * n / 2 for n in range(3000)],  # 1.5 GiB of 8
    "less than 256 MiB": [300 * MIB + MIB * n / 12 for n in range(3000)],
    "falling": [20 * GIB - 5 * MIB * n for n in range(3000)],
    "one low value": [2 * GIB * (n > 0) for n in range(3000)],
}


@pytest.mark.parametrize("name", NO_LEAKS)
def test_what_is_no_leak_is_not_warned_of(name: str) -> None:
    assert warnings(NO_LEAKS[name]) == []


@pytest.mark.parametrize("period", [2, 7, 20, 45])
def test_a_sawtooth_is_no_leak(period: int) -> None:
    assert warnings(GIB + 2 * GIB * (n % period) / period for n in range(3000)) == []


def test_few_records_are_kept() -> None:
    growth = Growth()
    for number in range(10_000):
        growth.add(number, number % 64)
    assert len(growth._records) <= growth_module.MOST
    assert growth._records[0] == (0, 0) and {low for _, low in growth._records} == {0}
    assert [first for first, _ in growth._records] == list(range(0, 10_000, 64))


def test_the_memory_of_this_process() -> None:
    """Pages of the system, since an allocator may give what it has kept."""
    for _ in range(3):  # the system may take other pages away meanwhile
        before, own_before = host_memory()
        with mmap.mmap(-1, 64 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block:
            for _ in range(64):
                block.write(b"1" * MIB)
            after, own_after = host_memory()
        assert 0 < own_after <= after
        grown = (after - before, own_after - own_before)
        if all(60 * MIB < one < 80 * MIB for one in grown):
            return
    pytest.fail(f"64 MiB were counted as {grown} bytes, the third time too")


def test_pages_of_a_mapped_file_are_in_memory_but_not_the_processes_own(tmp_path: Path) -> None:
    (tmp_path / "tokens.bin").write_bytes(bytes(64 * MIB))
    before, own_before = host_memory()
    mapped = np.memmap(tmp_path / "tokens.bin", np.uint8, "r")
    assert mapped[::4096].sum() == 0
    after, own_after = host_memory()
    assert after - before > 60 * MIB
    assert own_after - own_before < 4 * MIB


def test_without_proc_the_largest_value_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(self: Path, *words: object, **options: object) -> str:
        raise FileNotFoundError(self)

    now, _ = host_memory()
    monkeypatch.setattr(Path, "read_text", missing)
    resident, own = host_memory()
    assert resident == own >= 0.9 * now


def test_a_run_records_its_memory_and_warns_of_a_leak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter(range(GIB, 1000 * GIB, 100 * MIB))
    monkeypatch.setattr("freetf_cli.training.pace.host_memory", lambda: (5, next(values)))
    said: list[str] = []
    train(recipe(steps=80, log_every=1), tmp_path / "run", device=CPU, hooks=Hooks(warn=said.append))
    assert len(said) == 1 and "host memory of this process grows steadily" in said[0] and "100.0 MiB per step" in said[0]
    rows = [json.loads(line) for line in (tmp_path / "run" / "timing.jsonl").read_text().splitlines()]
    assert [(row["rss"], row["gpu_peak"]) for row in rows] == [(5, gpu_peak())] * 80
