"""scikit-learn and SciPy, which the optional extra `probe` installs."""

from __future__ import annotations

import importlib
from typing import Any


def probe_library(module: str) -> Any:
    """Import a module of the extra; InputError with the command that installs it if it is missing."""
    from freetf_cli.errors import InputError

    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        name = module.partition(".")[0]
        raise InputError(f"probing needs {name}, which is not installed", hint="pip install scikit-learn scipy") from None
