"""freetf: a toolkit for the Free Transformer (Fleuret, arXiv 2510.17558). docs/python.md describes the names below.

Importing the package does not import torch, which is loaded when one of the names is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from freetf_cli.api import LogLikelihood, Posterior, Run, Sample, load, log_likelihood, posterior, prior, sample

__version__ = "0.2.0.dev0"
__all__ = ["LogLikelihood", "Posterior", "Run", "Sample", "load", "log_likelihood", "posterior", "prior", "sample"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from freetf_cli import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
