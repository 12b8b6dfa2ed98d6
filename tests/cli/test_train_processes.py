"""`freetf train` with two processes: one run, one line on stderr if it fails, and the exit code of the reason.

Signals and kills at many moments are in tests/reliability (`ranks`, `launched`); the launcher alone is in tests/training/test_elastic.py.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.cli.test_train import LONG, rows, training, wait_for_a_step
from tests.conftest import ROOT
from tests.reliability.ranks import ranks_of

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX")]
GONE = "process 1 of 2 was ended by SIGKILL; resume with the same command and --resume auto"
ENDS = [("launcher", signal.SIGTERM, 75), ("rank 1", signal.SIGKILL, 1)]
TWO = ["--set", "parallel.processes=2", "--device", "cpu", "-q"]


@pytest.fixture(scope="module")
def pair(workshop, tmp_path_factory, environment):
    """A run of two processes, and its result."""
    run = tmp_path_factory.mktemp("pair") / "run"
    command = [sys.executable, "-m", "freetf_cli", "train", str(workshop / "free.toml"), "-o", str(run), *TWO, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    return run, json.loads(done.stdout)


def test_two_processes_train_what_one_does(pair, free_run):
    run, result = pair
    assert result["run"] == str(run) and result["steps"] == 6
    ours, theirs = rows(run), rows(free_run)
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for key in ("loss", "ce", "kl", "grad_norm"):
        assert [row[key] or 0.0 for row in ours] == pytest.approx([row[key] or 0.0 for row in theirs], rel=1e-4)
    names = ("checkpoints", "step-000006", "model.safetensors")
    one, other = (load_file(Path(folder, *names)) for folder in (run, free_run))
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=1e-5)
    assert json.loads((run / "manifest.json").read_text())["processes"] == 2


def test_torchrun_starts_the_same_run(pair, workshop, tmp_path, environment):
    run = tmp_path / "run"
    words = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "freetf_cli", "train", workshop / "free.toml", "-o", run, "-q"]
    command = [sys.executable, *(str(word) for word in words), "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, env={**environment, "OMP_NUM_THREADS": "1"}, timeout=120)
    assert done.returncode == 0, done.stderr
    last = Path("checkpoints", "step-000006", "model.safetensors")
    assert (run / last).read_bytes() == (pair[0] / last).read_bytes()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@pytest.mark.parametrize(("whom", "number", "code"), ENDS)
def test_one_signal_ends_both(workshop, tmp_path, environment, whom, number, code):
    run = tmp_path / "run"
    with training([workshop / "free.toml", "-o", run, *TWO, *LONG, "--set", "train.save_every=2"], environment) as process:
        wait_for_a_step(run, process)
        both = ranks_of(process.pid)
        os.kill(process.pid if whom == "launcher" else both[1], number)
        stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout, len(both)) == (code, "", 2)
    wanted = f"stopped by {number.name} after step" if code != 1 else GONE
    assert stderr.startswith(f"freetf: error: {wanted}") and stderr.count("\n") == 1
    assert not any(Path(f"/proc/{each}").exists() for each in both)


def test_a_batch_is_divided_evenly(refused, workshop, tmp_path):
    line = refused("train", workshop / "free.toml", "-o", tmp_path / "run", "--set", "parallel.processes=3")
    assert "parallel.processes = 3 times train.grad_accum_steps = 1 does not divide train.batch" in line


@pytest.mark.parametrize(
    ("variables", "what"),
    [
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE='abc'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE='0'"),
        ({"RANK": "5"}, "RANK='5' with WORLD_SIZE='2'"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT='70000'"),
    ],
)
def test_an_impossible_environment_is_refused(refused, monkeypatch, recipe_file, variables, what):
    usual = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for name, value in {**usual, **variables}.items():
        monkeypatch.setenv(name, value)
    assert what in refused("train", recipe_file, "--dry-run")


def test_the_slurm_script_stops_before_its_time_and_queues_itself_again(workshop, tmp_path, environment):
    """Two agents of two processes take the place of two machines; SIGUSR1 to one of them, as SLURM sends it, stops all."""
    tools = {
        "torchrun": f'exec {sys.executable} -m torch.distributed.run "$@"',
        "srun": f'"$@" & echo $! > {tmp_path}/task\n"$@" & wait',
        "scontrol": f'[ "$1" = show ] && echo localhost || echo "$@" >> {tmp_path}/queued',
    }
    for name, script in tools.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{script}\n")
        (tmp_path / name).chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "here", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "2", "PORT": str(port)}
    path = {"PATH": f"{tmp_path}:{environment['PATH']}", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    recipe, run = tmp_path / "long.toml", tmp_path / "run"
    recipe.write_text((workshop / "free.toml").read_text().replace("steps = 6", "steps = 9000").replace("every = 3", "every = 0"))
    command = ["bash", str(ROOT / "docs" / "slurm.sbatch"), str(recipe), str(run)]
    variables = {**environment, **path, **slurm}
    process = subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        wait_for_a_step(run, process)
        os.kill(int((tmp_path / "task").read_text()), signal.SIGUSR1)
        _, stderr = process.communicate(timeout=60)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert (process.returncode, (tmp_path / "queued").read_text()) == (0, "requeue 7\n"), stderr
    assert "freetf: error: stopped by SIGUSR1 after step" in stderr
    manifest = json.loads((run / "manifest.json").read_text())
    assert (manifest["status"], manifest["processes"]) == ("stopped", 4)
