"""The wheel: built from the checkout, installed elsewhere, used from another folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from freetf_cli import __version__
from freetf_cli.config.files import shipped_files, shipped_recipes

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow


def command(*words: object, cwd: Path) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, cwd=cwd, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel, built in a copy so that the checkout stays clean."""
    copy = tmp_path_factory.mktemp("source") / "freetf"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "__pycache__", "runs", "dist", "data.bin"))
    command(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", copy / "dist", copy, cwd=copy)
    return next((copy / "dist").glob("*.whl"))


def test_contents(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert wheel.name == f"freetf-{__version__}-py3-none-any.whl"
    assert {f"freetf_cli/recipes/{name}.toml" for name in shipped_files()} <= set(names)
    assert {f"freetf_cli/{name}" for name in ("py.typed", "tasks/reviews.toml", "report/page.css", "report/page.html.jinja")} <= set(names)
    assert not [name for name in names if name.startswith(("tests/", "docs/")) or name.endswith(".pyc")]


def test_installed_elsewhere(wheel, tmp_path):
    """In an environment that has the dependencies (those of this one) but not the checkout."""
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    site = Path(command(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    command(*install, cwd=tmp_path)
    # Behind its own site-packages; addsitedir would run this environment's .pth files, and find the checkout through them.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    where = command(python, "-c", "import freetf_cli; print(freetf_cli.__file__)", cwd=tmp_path).strip()
    assert where.startswith(str(site))
    freetf = tmp_path / "venv" / "bin" / "freetf"
    assert command(freetf, "--version", cwd=tmp_path) == f"freetf {__version__}\n"
    listed = command(freetf, "recipe", "list", cwd=tmp_path)
    assert all(name in listed for name in shipped_recipes())
