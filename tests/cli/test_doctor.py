"""`freetf doctor`, and the choice of a device."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
import torch

from freetf_cli import device
from freetf_cli.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


def test_doctor_json(run_cli):
    code, stdout, stderr = run_cli("doctor", "--json")
    record = json.loads(stdout)
    assert (code, stderr, record["schema_version"]) == (0, "", 1)
    found = {finding["name"]: finding for finding in record["findings"]}
    assert found["torch"]["value"] == torch.__version__
    assert {"python", "cpu", "devices", "torch.compile", "safetensors", "extra probe", "recipes"} <= set(found)


def test_each_lack_has_a_fix(monkeypatch):
    monkeypatch.setattr(device.shutil, "which", lambda name: None)
    lacks = [finding for finding in device.findings() if not finding.ok]
    assert "torch.compile" in [finding.name for finding in lacks]
    assert all(finding.fix for finding in lacks)


@pytest.mark.parametrize(
    ("absent", "value"),
    [
        ({"sklearn"}, "sklearn not installed: `probe-latent`"),
        ({"sklearn", "scipy"}, "not installed: `probe-latent`"),
        (set(), "installed: `probe-latent`"),
    ],
)
def test_extras_name_what_they_are_for_and_how_to_install_them(monkeypatch, run_cli, absent, value):
    monkeypatch.setattr(device.importlib.util, "find_spec", lambda name: None if name in absent else object())
    found = next(finding for finding in device.findings() if finding.name == "extra probe")
    assert (found.value, found.ok, found.fix) == (value, not absent, "pip install 'freetf[probe]'" if absent else "")
    line = next(line for line in run_cli("doctor").stdout.splitlines() if "extra probe" in line)
    assert line.strip().startswith("–" if absent else "✓")


def test_every_extra_has_a_finding():
    with (ROOT / "pyproject.toml").open("rb") as file:
        extras = set(tomllib.load(file)["project"]["optional-dependencies"])
    assert {f"extra {name}" for name in extras - {"dev"}} == {one.name for one in device.findings() if one.name.startswith("extra ")}


def test_doctor_for_people(run_cli):
    code, stdout, stderr = run_cli("doctor")
    assert (code, stderr) == (0, "")
    assert torch.__version__ in stdout


def test_resolve_device():
    assert device.resolve_device("cpu") == torch.device("cpu")
    assert device.resolve_device("auto").type == device.available()[0]


@pytest.mark.parametrize(("name", "hint"), [("cuda", "freetf doctor"), ("tpu", "choose from: auto, cpu, cuda, mps")])
def test_a_missing_device_is_bad_usage(monkeypatch, name, hint):
    monkeypatch.setattr(device, "available", lambda: ["cpu"])
    with pytest.raises(InputError) as caught:
        device.resolve_device(name)
    assert hint in caught.value.hint


def test_autocast_dtype():
    cpu = torch.device("cpu")
    assert device.autocast_dtype("auto", cpu) is None
    assert device.autocast_dtype("fp32", cpu) is None
    assert device.autocast_dtype("bf16", cpu) is torch.bfloat16


def test_describe_names_no_machine():
    facts = device.describe(torch.device("cpu"))
    assert facts["torch"] == torch.__version__
    assert json.dumps(facts)
    assert "host" not in facts


@pytest.mark.parametrize(("load", "busy"), [(0.2, False), (8.1, True)])
def test_the_cores_and_their_load(monkeypatch, load, busy):
    monkeypatch.setattr(device, "cores", lambda: 2)
    monkeypatch.setattr(device.os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    shown = next(finding.value for finding in device.findings() if finding.name == "cpu")
    assert shown.startswith(f"2 cores, 2 threads for torch, load {load}")
    assert ("other programs keep them busy" in shown) == busy
