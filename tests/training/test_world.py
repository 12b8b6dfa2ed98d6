"""What processes agree on. Two processes train in tests/reliability/ranks.py and tests/cli/test_train_processes.py."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from itertools import chain
from multiprocessing.connection import Connection
from typing import Any

import pytest
import torch

from freetf_cli.errors import FreetfError, Stopped
from freetf_cli.training import world as world_module
from freetf_cli.training.signals import StopRequest
from freetf_cli.training.world import World, process_group


def test_with_one_process_every_operation_returns_its_argument() -> None:
    alone = World()
    alone.barrier()
    assert (alone.sum([1.5, 2.0]), alone.broadcast("x"), alone.gather(7), alone.any(True), alone.is_main) == (
        [1.5, 2.0],
        "x",
        [7],
        True,
        True,
    )
    assert alone.rows(6) == [range(6)]


def test_rows_of_all_processes_are_the_batch() -> None:
    rows = [list(chain(*World(rank, 3).rows(12))) for rank in range(3)]
    assert rows == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    parts = [list(chain(*World(rank, 3).rows(12, parts=2))) for rank in range(3)]
    assert parts == [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]  # of each half every process has a third


def member(rank: int, port: int, answer: Connection) -> None:
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in variables.items()}
    if sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    with process_group(torch.device("cpu"), StopRequest()) as world:
        world.barrier()
        chosen = world.broadcast({"päth": [1]} if world.is_main else None)
        answer.send((world.sum([1.0 + rank, 2.0**40]), world.any(rank == 1), world.any(False), world.gather(rank), chosen))


def test_two_processes_sum_and_agree() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(2)]
    members: list[Any] = [context.Process(target=member, args=(rank, port, pipes[rank][1]), daemon=True) for rank in range(2)]
    for each in members:
        each.start()
    answers = [pipe.recv() if pipe.poll(60) else None for pipe, _ in pipes]
    for each in members:
        each.join(20)
    assert [each.exitcode for each in members] == [0, 0]
    assert answers[0] == answers[1]
    assert answers[0] == ([3.0, 2.0**41], True, False, [0, 1], {"päth": [1]})


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 1 of 3, whose peers never come."""
    monkeypatch.setattr(world_module.dist, "init_process_group", lambda backend: time.sleep(5))
    monkeypatch.setattr(world_module, "joined", False)
    for name, value in {"RANK": 1, "LOCAL_RANK": 1, "WORLD_SIZE": 3, "MASTER_ADDR": "somewhere", "MASTER_PORT": 1234}.items():
        monkeypatch.setenv(name, str(value))


def test_waiting_for_peers_ends_after_a_timeout(alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world_module, "JOIN_TIMEOUT", 0.2)
    began = time.monotonic()
    error = "3 processes could not connect at somewhere:1234 .* within 0 s"
    with pytest.raises(FreetfError, match=error), process_group(torch.device("cpu"), StopRequest()):
        pass
    assert time.monotonic() - began < 3
    assert world_module.joined  # the program must exit without the interpreter's clean-up


def test_a_signal_ends_the_wait_for_peers(alone: None) -> None:
    stop = StopRequest()
    threading.Timer(0.2, stop, (signal.SIGTERM, None)).start()
    began = time.monotonic()
    with pytest.raises(Stopped, match="stopped by SIGTERM before its first step"), process_group(torch.device("cpu"), stop):
        pass
    assert time.monotonic() - began < 3
