"""Files with any bytes are read or refused with a clear error; runs that are stopped in any way end the same. FUZZ=N: examples of each."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from freetf_cli.config.files import load_recipe
from freetf_cli.data.dataset import Dataset
from freetf_cli.data.prepare import write_task
from freetf_cli.errors import InputError, Stopped
from freetf_cli.generation.sampling import SampleSpec, generate
from freetf_cli.records import Progress
from freetf_cli.runs.checkpoint import Checkpoint, checkpoint_folders, open_checkpoint
from freetf_cli.runs.folder import RunFolder
from freetf_cli.tasks import make_task
from freetf_cli.training.loop import Hooks
from freetf_cli.training.run import train
from freetf_cli.training.signals import StopRequest
from tests.reliability.files import FILES
from tests.reliability.world import CPU, STEPS, quiet, record, rehash, tiny

pytestmark = pytest.mark.slow
FUZZ = int(os.environ.get("FUZZ", "15"))
FEW = settings(max_examples=FUZZ, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
changes = st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=8)


def mutate(data: bytes, changed: list[tuple[int, int]], cut: int | None) -> bytes:
    found = bytearray(data)
    for at, value in changed:
        found[at % len(found)] = value
    return bytes(found[: cut % len(found)] if cut is not None else found)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, and tiny.toml beside it."""
    folder = tmp_path_factory.mktemp("fuzz")
    train(load_recipe(str(tiny(folder))), folder / "whole", device=CPU)
    return folder / "whole"


@FEW
@given(name=st.sampled_from(FILES), changed=changes, cut=st.none() | st.integers(0, 1 << 20))
def test_a_checkpoint_whose_hashes_are_right(whole: Path, name: str, changed: list[tuple[int, int]], cut: int | None) -> None:
    """A mutated file with a matching manifest is refused, or is a checkpoint of this model with other numbers."""
    with tempfile.TemporaryDirectory() as place:
        bad = Path(shutil.copytree(checkpoint_folders(whole)[-1], Path(place) / "step-000012"))
        (bad / name).write_bytes(mutate((bad / name).read_bytes(), changed, cut))
        rehash(bad)
        try:
            checkpoint = Checkpoint.open(bad)
            model, _, _ = checkpoint.model(CPU), checkpoint.tokenizer(), checkpoint.optimizer()
        except InputError as error:
            assert str(bad) in str(error)
        else:
            intact = checkpoint_folders(whole)[-1]
            theirs = Checkpoint.open(intact)
            changed_files = {file.name for file in bad.iterdir() if file.read_bytes() != (intact / file.name).read_bytes()}
            assert changed_files <= {name, "MANIFEST.sha256"}
            if name != "state.json":
                assert (checkpoint.step, checkpoint.recipe) == (theirs.step, theirs.recipe)
            if checkpoint.recipe.model == theirs.recipe.model and checkpoint.recipe.latent == theirs.recipe.latent:
                shapes = [[p.shape for p in each.parameters()] for each in (model, theirs.model(CPU))]
                assert shapes[0] == shapes[1]


@FEW
@given(changed=changes, cut=st.none() | st.integers(0, 1 << 20))
def test_a_recipe(whole: Path, changed: list[tuple[int, int]], cut: int | None) -> None:
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "recipe.toml"
        path.write_bytes(mutate((whole / "recipe.toml").read_bytes(), changed, cut))
        try:
            load_recipe(str(path))
        except InputError as error:
            assert error.lines()


@FEW
@given(file=st.integers(0, 100), changed=changes, cut=st.none() | st.integers(0, 1 << 20))
def test_a_data_folder(tmp_path: Path, file: int, changed: list[tuple[int, int]], cut: int | None) -> None:
    """Every byte is hashed: any change is noticed."""
    source = tmp_path / "data"
    if not source.exists():
        write_task(make_task("letters", {}), source, count=40, seed=0, split={"train": 0.5, "val": 0.5})
    with tempfile.TemporaryDirectory() as place:
        bad = Path(shutil.copytree(source, Path(place) / "data"))
        files = sorted(path for path in bad.rglob("*") if path.is_file() and path.stat().st_size)
        path = files[file % len(files)]
        before = path.read_bytes()
        path.write_bytes(mutate(before, changed, cut))
        try:
            assert Dataset.open(bad).splits
        except InputError as error:
            assert str(bad) in str(error)
        else:
            assert path.name == "manifest.json" or path.read_bytes() == before


trees = st.recursive(st.none() | st.integers() | st.floats() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x))


@FEW
@given(text=st.text(max_size=200) | trees.map(json.dumps))
def test_given_codes(whole: Path, text: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "z.jsonl"
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        code, output = quiet(["sample", str(whole), "--prompt", "A>", "--z", str(path), "--device", "cpu"])
        assert code in (0, 2) and "internal error" not in output and "Traceback" not in output


class Life(RuleBasedStateMachine):
    """A run that is stopped, killed, damaged and resumed; at its end it equals a run that nothing happened to."""

    @initialize()
    def begin(self) -> None:
        self.place = Path(tempfile.mkdtemp())
        self.recipe, self.run = load_recipe(str(tiny(self.place))), self.place / "run"
        train(self.recipe, self.place / "whole", device=CPU)

    def teardown(self) -> None:
        shutil.rmtree(self.place, ignore_errors=True)

    def go(self, hooks: Hooks | None = None, stop: StopRequest | None = None) -> None:
        start = open_checkpoint(self.run, lambda message: None) if checkpoint_folders(self.run) else None
        train(self.recipe, self.run, device=CPU, resume=start, again=True, hooks=hooks, stop=stop)

    @rule(steps=st.integers(1, STEPS))
    def stopped(self, steps: int) -> None:
        request, seen = StopRequest(), []

        def progress(update: Progress) -> None:
            seen.append(update.metrics.step)
            if len(seen) == steps:
                request(15, None)

        try:
            self.go(Hooks(progress=progress), request)
        except Stopped:
            assert checkpoint_folders(self.run)

    @rule(steps=st.integers(1, STEPS))
    def died(self, steps: int) -> None:
        """The process dies between two steps, without saving."""
        seen: list[int] = []

        def progress(update: Progress) -> None:
            seen.append(update.metrics.step)
            if len(seen) == steps:
                raise ZeroDivisionError

        try:
            self.go(Hooks(progress=progress))
        except ZeroDivisionError:
            pass

    @precondition(lambda self: len(checkpoint_folders(self.run)) > 1)
    @rule(name=st.sampled_from(FILES), at=st.integers(0, 10_000))
    def damaged(self, name: str, at: int) -> None:
        path = checkpoint_folders(self.run)[-1] / name
        data = bytearray(path.read_bytes())
        data[at % len(data)] ^= 1
        path.write_bytes(data)

    @precondition(lambda self: checkpoint_folders(self.run))
    @rule()
    def sampled(self) -> None:
        checkpoint = open_checkpoint(self.run, lambda message: None)
        (sample,) = generate(checkpoint.model(CPU), checkpoint.tokenizer(), ["A>"], SampleSpec(14, prompt_z="prior"))
        assert len(sample.text) == 14

    @precondition(lambda self: (self.run / "checkpoints" / f"step-{STEPS:06d}").exists())
    @rule()
    def ended(self) -> None:
        self.go()
        assert record(self.run) == record(self.place / "whole")

    @invariant()
    def its_record_can_be_read(self) -> None:
        if hasattr(self, "run") and (self.run / "metrics.jsonl").exists():
            steps = [row.step for row in RunFolder(self.run).metrics() if row.split == "train"]
            assert steps == list(range(1, len(steps) + 1))


Life.TestCase.settings = settings(
    max_examples=max(3, FUZZ // 20), stateful_step_count=8, deadline=None, suppress_health_check=list(HealthCheck)
)
TestLife = Life.TestCase
