"""What several processes agree on; two of them train in tests/reliability/ranks.py and tests/cli/test_train_processes.py."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import time
from multiprocessing.connection import Connection
from typing import Any

import pytest
import torch

from freetf_cli.errors import FreetfError
from freetf_cli.training import distributed
from freetf_cli.training.distributed import World, joined
from freetf_cli.training.signals import StopRequest


def test_one_process_gives_back_what_it_is_given() -> None:
    alone, numbers = World(), torch.arange(3.0)
    alone.sum_([numbers])
    assert numbers.tolist() == [0, 1, 2]
    assert (alone.largest(7), alone.told("x"), alone.alike(torch.arange(2)), alone.leads) == (7, "x", True, True)
    assert alone.rows(6) == slice(0, 6)


def test_rows_of_all_processes_are_the_batch() -> None:
    rows = [list(range(12))[World(rank, 3).rows(12)] for rank in range(3)]
    assert rows == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


def test_buckets_hold_all_in_order_and_no_more_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
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
    with joined(torch.device("cpu"), StopRequest()) as world:
        parts = [torch.full((2, 2), 1.0 + rank), torch.full((3,), 10.0 * (1 + rank)), torch.tensor(float(rank))]
        world.sum_(parts)
        found = [part.tolist() for part in parts]
        same, other = (world.alike(torch.tensor([5, number])) for number in (7, rank))
        answer.send((found, world.largest(3 - rank), world.told("päth/" * 40 if world.leads else "not this"), world.told(""), same, other))


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


def test_others_that_do_not_come_are_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "JOIN_LIMIT", 0.2)
    monkeypatch.setattr(distributed.dist, "init_process_group", lambda backend: time.sleep(5))
    monkeypatch.setattr(distributed, "left_open", False)
    for name, value in {"RANK": 1, "LOCAL_RANK": 1, "WORLD_SIZE": 3, "MASTER_ADDR": "somewhere", "MASTER_PORT": 1234}.items():
        monkeypatch.setenv(name, str(value))
    began = time.monotonic()
    with pytest.raises(FreetfError, match="3 processes were to meet at somewhere:1234"), joined(torch.device("cpu"), StopRequest()):
        pass
    assert time.monotonic() - began < 3
    assert distributed.left_open  # so that the program ends without the interpreter's clean-up
