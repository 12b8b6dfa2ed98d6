"""`freetf export-metrics` writes each record of metrics.jsonl once, even if the export is repeated, and uploads nothing."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from freetf_cli.cli.app import main
from freetf_cli.exchange import trackers
from freetf_cli.exchange.trackers import export_metrics, identity, scalars
from freetf_cli.records import Metrics
from freetf_cli.runs.folder import RunFolder

RECIPE = """\
description = "tiny Free"
data = { task = "letters", params = { length = 12, target = 3, letters = 4 } }
model = { layers = 2, width = 16, heads = 2 }
latent = { kappa = 0.5, bits = 4 }
train = { steps = 4, batch = 4, lr = 1e-2, log_every = 2 }
eval = { every = 2, sequences = 4, samples = 0 }
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tracked")
    (folder / "free.toml").write_text(RECIPE, encoding="utf-8")
    assert main(["train", str(folder / "free.toml"), "-o", str(folder / "run"), "--device", "cpu", "-q"]) == 0
    return folder / "run"


@pytest.fixture
def run(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "my run"))


def lines(run: Path) -> list[Metrics]:
    return RunFolder(run).metrics()


@pytest.fixture
def logged(monkeypatch):
    """Replaces wandb by a tracker that records what it is given, in one list for each time it is opened."""
    opened = []

    class Kept:
        place, view = "here", "look"

        def __init__(self, run):
            self.kept = []
            opened.append(self.kept)

        def log(self, step, values):
            self.kept.append((step, dict(values)))

        def flush(self):
            pass

        def close(self):
            self.kept.append("closed")

    monkeypatch.setitem(trackers.TRACKERS, "wandb", Kept)
    return opened


def test_each_record_is_written_with_its_step(run, logged):
    found = export_metrics(run, "wandb")
    assert logged == [[*((line.step, scalars(line)) for line in lines(run)), "closed"]]
    assert (found.records, found.place, found.to) == (len(lines(run)), "here", "wandb")


def test_scalars_are_named_by_split():
    line = Metrics(5, 10, "train", 1.0, 0.5, 0.25, 0.1, 0.5, 0.3, 1e-3, None, None)
    assert scalars(line) == {
        "train/tokens": 10,
        "train/loss": 1.0,
        "train/ce": 0.5,
        "train/kl": 0.25,
        "train/penalty": 0.1,
        "train/above_kappa": 0.5,
        "train/kappa": 0.3,
        "train/lr": 1e-3,
    }
    held_out = Metrics(5, 10, "train", 1.0, float("nan"), 0.0, 0.0, 0.0, 0.0, None, None, None)  # of a baseline that diverged
    assert scalars(held_out) == {"held out train/tokens": 10, "held out train/loss": 1.0}


def test_a_run_is_followed_until_it_ends(run, logged, monkeypatch):
    whole = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    manifest = json.loads((run / "manifest.json").read_text())

    def state(status: str, count: int, first: int = 0) -> None:
        (run / "manifest.json").write_text(json.dumps({**manifest, "status": status}))
        (run / "metrics.jsonl").write_text("".join(whole[first : first + count]))

    states = [("running", 3), ("running", 2, 1), ("done", 5)]  # it grows, goes back, and ends
    monkeypatch.setattr("freetf_cli.evaluation.summary.is_locked", lambda path: True)
    monkeypatch.setattr(trackers.time, "sleep", lambda seconds: state(*states.pop(0)))
    state("running", 2)
    assert export_metrics(run, "wandb", follow=True).records == 5
    steps = [[entry if entry == "closed" else entry[0] for entry in each] for each in logged]
    all_steps = [line.step for line in lines(run)]
    assert steps == [[*all_steps[:3], "closed"], [*all_steps[1:3], "closed"], [*all_steps, "closed"]]


def test_a_damaged_record_reaches_no_tracker(run, logged):
    (run / "metrics.jsonl").write_text('{"step": 1}\n{}\n')
    assert main(["export-metrics", str(run), "--to", "wandb"]) == 2
    assert logged == []


def test_a_tracker_that_is_not_installed(run_cli, run, monkeypatch):
    for name in trackers.TRACKERS:
        monkeypatch.setitem(sys.modules, name, None)
        code, stdout, stderr = run_cli("export-metrics", run, "--to", name)
        assert (code, stdout) == (1, "")
        assert stderr.endswith(f"which is not installed; pip install 'freetf[{name}]'\n")


def test_the_identity_of_a_run(run, tmp_path):
    own = identity(RunFolder(run))
    moved = run.rename(tmp_path / "moved")
    assert identity(RunFolder(moved)) == own
    manifest = json.loads((moved / "manifest.json").read_text())
    (moved / "manifest.json").write_text(json.dumps({**manifest, "started": "2020-01-01T00:00:00+00:00"}))
    assert identity(RunFolder(moved)) != own


class Calls(ModuleType):
    """A module that records its calls."""

    def __init__(self, name: str, **members: object) -> None:
        super().__init__(name)
        self.calls: list[tuple[str, tuple[object, ...], dict[str, object]]] = []
        vars(self).update(members)

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **options: self.calls.append((name, args, options))


def test_wandb_is_offline_by_default_and_one_run_however_often(run, monkeypatch):
    fake, inits = Calls("wandb"), []

    def init(**options: object) -> object:
        inits.append(options)
        folder = Path(str(options["dir"])) / "wandb" / f"offline-run-{len(inits)}-{options['id']}" / "files"
        folder.mkdir(parents=True)
        return SimpleNamespace(dir=str(folder), log=fake.log, finish=fake.finish)

    fake.init = init
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    for _ in range(2):
        found = export_metrics(run, "wandb")
    assert inits[0] == inits[1]
    assert (inits[0]["mode"], inits[0]["resume"], inits[0]["name"], inits[0]["project"]) == ("offline", "allow", "my run", "freetf")
    assert inits[0]["config"]["latent.kappa"] == "0.5"
    assert [path.name for path in (run / "wandb").iterdir()] == [f"offline-run-2-{inits[0]['id']}"]
    assert found.view == f"wandb sync '{run}/wandb/offline-run-2-{inits[0]['id']}'"
    steps = [options["step"] for name, _, options in fake.calls if name == "log"]
    assert steps == [line.step for line in lines(run)] * 2
    monkeypatch.setenv("WANDB_MODE", "online")
    export_metrics(run, "wandb")
    assert inits[2]["mode"] == "online"


def test_trackio_keeps_one_run_however_often(run, monkeypatch, capsys):
    fake, stored = Calls("trackio"), []

    def runs(project: str) -> list[object]:
        if not stored:
            raise ValueError(f"Project '{project}' does not exist")
        assert project == "freetf"
        return list(stored)

    def init(**options: object) -> None:
        print("* a page to look at")
        assert not any(one.name == options["name"] for one in stored)
        stored.append(SimpleNamespace(name=options["name"], delete=lambda: stored.pop()))

    fake.init, fake.Api = init, lambda: SimpleNamespace(runs=runs)
    monkeypatch.setitem(sys.modules, "trackio", fake)
    monkeypatch.delenv("TRACKIO_PROJECT", raising=False)
    export_metrics(run, "trackio")
    stored.insert(0, SimpleNamespace(name="somebody's", delete=lambda: pytest.fail("not ours")))
    export_metrics(run, "trackio")
    assert [one.name for one in stored] == ["somebody's", f"my run-{identity(RunFolder(run))}"]
    assert [name for name, *_ in fake.calls].count("log") == 2 * len(lines(run))
    assert capsys.readouterr().out == ""


def test_the_command_prints_where_to_look(run_cli, run, logged):
    code, stdout, stderr = run_cli("export-metrics", run, "--to", "wandb", "--json")
    assert (code, stderr) == (0, "")
    record = {"schema_version": 1, "run": str(run), "to": "wandb", "place": "here", "records": len(lines(run)), "view": "look"}
    assert json.loads(stdout) == record
    assert "look" in run_cli("export-metrics", run, "--to", "wandb").stderr


# --- the trackers themselves, where they are installed -------------------------------------------------------------------


def test_tensorboard(run):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = run / "tensorboard"
    folder.mkdir()
    (folder / "events.out.tfevents.1.other").write_bytes(b"")
    for _ in range(2):
        export_metrics(run, "tensorboard")
    (file,) = folder.glob("*.freetf")
    events = EventAccumulator(str(file)).Reload()
    rows = [line for line in lines(run) if line.split == "val"]
    assert [(event.step, event.value) for event in events.Scalars("val/ce")] == [(row.step, pytest.approx(row.ce)) for row in rows]
    assert (folder / "events.out.tfevents.1.other").is_file()


def test_trackio(run, tmp_path, monkeypatch):
    """Runs in a new process, because Trackio reads TRACKIO_DIR when it is imported."""
    pytest.importorskip("trackio")
    import sqlite3
    import subprocess

    code = "import sys; from pathlib import Path; from freetf_cli.exchange.trackers import export_metrics as e; "
    code += "[e(Path(sys.argv[1]), 'trackio') for _ in range(2)]"
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("PYTHONPATH", str(Path(trackers.__file__).parents[2]), prepend=":")
    done = subprocess.run([sys.executable, "-c", code, run], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    with sqlite3.connect(tmp_path / "trackio" / "freetf.db") as database:
        steps = [step for (step,) in database.execute("SELECT step FROM metrics ORDER BY id")]
    assert steps == [line.step for line in lines(run)]


def test_wandb(run, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    for _ in range(2):
        found = export_metrics(run, "wandb")
    (folder,) = (run / "wandb").glob("offline-run-*")
    assert found.place == str(folder)
    assert list(folder.glob("run-*.wandb"))
