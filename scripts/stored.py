"""Reads the result file of a script that adds to it, call by call."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def stored(out: Path, check: Callable[[Any], object], hint: str = "move it away, or name another file") -> Any:
    """Read OUT.json. Returns None if there is no such file; ends the program with one line if it is damaged, or another script's.

    check: reads what the script needs of the file, and fails if something is missing or of another kind.
    """
    if not out.exists():
        return None
    try:
        found = json.loads(out.read_bytes())
        check(found)
    except OSError as error:
        sys.exit(f"error: cannot read {out}: {error.strerror}")
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError):
        sys.exit(f"error: {out} is damaged, or is not a result of this script; {hint}")
    return found
