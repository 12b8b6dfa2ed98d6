"""Files that are written under a temporary name and renamed."""

import os
from pathlib import Path

import pytest

from freetf_cli.cli.output import write_file
from freetf_cli.durable import write_durably
from freetf_cli.errors import InputError


def test_a_pipe_is_not_replaced(tmp_path: Path) -> None:
    """Also not if it has appeared since the path was checked."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        with pytest.raises(OSError, match="not a regular file"):
            write_durably(tmp_path / name, "text")
        with pytest.raises(InputError, match="not a regular file"):
            write_file(tmp_path / name, "text", "report")
    assert (tmp_path / "pipe").is_fifo() and (tmp_path / "link").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "pipe"]


def test_a_file_in_a_folder_of_the_program_replaces_a_link(tmp_path: Path) -> None:
    """Nothing is written through a link in a run, which somebody else may have made."""
    (tmp_path / "outside").write_text("old")
    (tmp_path / "link").symlink_to("outside")
    write_durably(tmp_path / "link", "new")
    assert (tmp_path / "outside").read_text() == "old" and not (tmp_path / "link").is_symlink()
