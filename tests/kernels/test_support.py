"""Where kernels run, what importing them brings in, and which way their imports run."""

import subprocess
import sys
from graphlib import TopologicalSorter

import pytest
import torch

from freetf_cli.kernels import support
from freetf_cli.kernels.support import runs_kernels
from tests.test_architecture import MODULES, imports, own


def test_imports_of_kernels_have_no_circle_even_within_functions() -> None:
    names = {name for name in MODULES if name.startswith("freetf_cli.kernels.")}
    graph = {name: own(imports(MODULES[name])) & names for name in names}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle
    assert any(name.endswith("_triton") for needed in graph.values() for name in needed)


def test_importing_kernels_imports_no_compiler() -> None:
    """It would add more than a second to every start of `freetf sample`."""
    program = "import sys, freetf_cli.kernels, freetf_cli.generation.sampling; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize("everywhere", [False, True])
def test_the_compiler_traces_the_choice_of_kernels(everywhere: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """tests/test_gpu.py has the choice on a GPU."""
    monkeypatch.setattr(support, "HAS_TRITON", True)
    monkeypatch.setattr(support, "INTERPRETED", everywhere)
    chosen = torch.compile(lambda x: x + 1 if runs_kernels(x.device) else x, fullgraph=True, backend="eager")
    assert chosen(torch.zeros(())).item() == everywhere
