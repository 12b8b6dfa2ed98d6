"""Collective operations. Two processes train in tests/reliability/ranks.py and tests/cli/test_train_processes.py."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

import pytest
import torch

from freetf_cli.errors import FreetfError, Stopped
from freetf_cli.training import distributed
from freetf_cli.training.distributed import World, process_group
from freetf_cli.training.signals import StopRequest


def test_with_one_process_every_operation_returns_its_argument() -> None:
    alone, numbers = World(), torch.arange(3.0)
    alone.all_reduce_sum([numbers])
    assert numbers.tolist() == [0, 1, 2]
    found = (alone.all_reduce_max(7), alone.broadcast("x"), alone.all_equal(torch.arange(2)), alone.is_main)
    assert found == (7, "x", True, True)
    assert alone.rows(6) == slice(0, 6)


def test_rows_of_all_processes_are_the_batch() -> None:
    rows = [list(range(12))[World(rank, 3).rows(12)] for rank in range(3)]
    assert rows == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


def test_buckets_hold_all_tensors_in_order_up_to_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "BUCKET", 10)
    tensors = [torch.zeros(size) for size in (4, 6, 1, 25, 3, 3)]
    found = [[len(tensor) for tensor in bucket] for bucket in distributed._buckets(tensors)]
    assert found == [[4, 6], [1], [25], [3, 3]]


def member(rank: int, port: int, answer: Connection) -> None:
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in variables.items()}
    if sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    distributed.BUCKET = 5
    with process_group(torch.device("cpu"), StopRequest()) as world:
        parts = [torch.full((2, 2), 1.0 + rank), torch.full((3,), 10.0 * (1 + rank)), torch.tensor(float(rank))]
        world.all_reduce_sum(parts)
        found = [part.tolist() for part in parts]
        same, other = (world.all_equal(torch.tensor([5, number])) for number in (7, rank))
        texts = world.broadcast("päth/" * 40 if world.is_main else "not this"), world.broadcast("")
        answer.send((found, world.all_reduce_max(3 - rank), *texts, same, other))


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
    assert answers[0] == ([[[3.0, 3.0], [3.0, 3.0]], [30.0, 30.0, 30.0], 1.0], 3, "päth/" * 40, "", True, False)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 1 of 3, whose peers never come."""
    monkeypatch.setattr(distributed.dist, "init_process_group", lambda backend: time.sleep(5))
    monkeypatch.setattr(distributed, "joined", False)
    for name, value in {"RANK": 1, "LOCAL_RANK": 1, "WORLD_SIZE": 3, "MASTER_ADDR": "somewhere", "MASTER_PORT": 1234}.items():
        monkeypatch.setenv(name, str(value))


def test_waiting_for_peers_ends_after_a_timeout(alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "JOIN_TIMEOUT", 0.2)
    began = time.monotonic()
    error = "3 processes could not connect at somewhere:1234 .* within 0 s"
    with pytest.raises(FreetfError, match=error), process_group(torch.device("cpu"), StopRequest()):
        pass
    assert time.monotonic() - began < 3
    assert distributed.joined  # the program must exit without the interpreter's clean-up


def test_a_signal_ends_the_wait_for_peers(alone: None) -> None:
    stop = StopRequest()
    threading.Timer(0.2, stop, (signal.SIGTERM, None)).start()
    began = time.monotonic()
    with pytest.raises(Stopped, match="stopped by SIGTERM before its first step"), process_group(torch.device("cpu"), stop):
        pass
    assert time.monotonic() - began < 3
