"""`freetf doctor`, and the choice of a device."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch

from freetf_cli import device
from freetf_cli.errors import InputError


def test_doctor_json(run_cli):
    code, stdout, stderr = run_cli("doctor", "--json")
    record = json.loads(stdout)
    assert (code, stderr, record["schema_version"]) == (0, "", 1)
    found = {finding["name"]: finding for finding in record["findings"]}
    assert found["torch"]["value"] == torch.__version__
    assert {"python", "cpu", "devices", "torch.compile", "safetensors", "probe libraries", "recipes"} <= set(found)


def test_each_lack_has_a_fix(monkeypatch):
    monkeypatch.setattr(device.shutil, "which", lambda name: None)
    lacks = [finding for finding in device.findings() if not finding.ok]
    assert "torch.compile" in [finding.name for finding in lacks]
    assert all(finding.fix for finding in lacks)


@pytest.mark.parametrize(("absent", "fix"), [(["scipy"], "pip install scipy"), (["sklearn", "scipy"], "pip install scikit-learn scipy")])
def test_missing_probe_libraries_have_a_fix(monkeypatch, absent, fix):
    find = importlib.util.find_spec
    monkeypatch.setattr(device.importlib.util, "find_spec", lambda name: None if name in absent else find(name))
    found = next(finding for finding in device.findings() if finding.name == "probe libraries")
    assert (found.ok, found.fix) == (False, fix)


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
