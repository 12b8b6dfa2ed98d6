"""Imports run one way: a module imports only from its own layer or those below (docs/architecture.md)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "freetf_cli"
LAYERS = (
    {"errors", "durable", "streams", "report"},
    {"records"},
    {"config"},
    {"tasks", "kernels", "device"},
    {"data", "model"},
    {"latent"},
    {"runs"},
    {"generation"},
    {"evaluation"},
    {"training"},
    {"bench"},
    {"exchange", "api"},
    {"cli"},
)
HEAVY = {"torch", "numpy", "tokenizers", "safetensors", "transformers", "jinja2", "matplotlib"}
FILES = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py"))}
MODULES = {name.removesuffix(".__init__"): path for name, path in FILES.items()}


def part(module: str) -> str:
    """`freetf_cli.tasks.coins` is of the part `tasks`."""
    return [*module.split("."), ""][1]


def layer(module: str) -> int:
    found = [number for number, parts in enumerate(LAYERS) if part(module) in parts]
    assert found, f"{part(module)} has no layer yet: give it one here and in docs/architecture.md"
    return found[0]


def imports(path: Path, *, on_import: bool = False) -> Iterator[str]:
    """Names of the modules that a file imports; on_import: only those that importing it brings in."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in _running(tree) if on_import else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (full if (full := f"{node.module}.{alias.name}") in MODULES else str(node.module) for alias in node.names)


def _running(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when a module is imported: not in functions, not under TYPE_CHECKING."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _running(child)


def own(names: Iterator[str]) -> set[str]:
    return {name for name in names if name.split(".")[0] == "freetf_cli" and name != "freetf_cli"}


PARTS = [name for name in MODULES if part(name) not in ("", "__main__")]


@pytest.mark.parametrize("module", PARTS)
def test_imports_run_one_way(module):
    above = [name for name in own(imports(MODULES[module])) if layer(name) > layer(module)]
    assert above == []


@pytest.mark.parametrize("module", [name for name in PARTS if part(name) == "report"])
def test_renderers_see_blocks_and_no_record(module):
    assert {part(name) for name in own(imports(MODULES[module]))} <= {"errors", "report"}


@pytest.mark.parametrize("module", [name for name in PARTS if part(name) == "records"])
def test_records_know_blocks_and_no_renderer(module):
    assert own(imports(MODULES[module])) - set(PARTS) == set()
    renderers = {"charts", "boxes", "page", "terminal", "console", "progress", "style"}
    assert not {name.rpartition(".")[2] for name in own(imports(MODULES[module])) if part(name) == "report"} & renderers
    assert {part(name) for name in own(imports(MODULES[module]))} <= {"records", "report"}


@pytest.mark.parametrize("module", [name for name in PARTS if part(name) == "model"])
def test_model_sees_only_kernels_and_the_recipe(module):
    allowed = {"model", "kernels", "config", "records", "errors", "streams", "device"}
    assert {part(name) for name in own(imports(MODULES[module]))} <= allowed


def light(module: str) -> bool:
    return part(module) in {"config", "records", "errors", "report", "cli", "device"} or module.startswith("freetf_cli.tasks")


@pytest.mark.parametrize("module", [name for name in PARTS if light(name)])
def test_importing_a_light_module_imports_nothing_heavy(module):
    allowed = {"numpy"} if module.startswith("freetf_cli.tasks") else set()
    assert {name.split(".")[0] for name in imports(MODULES[module], on_import=True)} & HEAVY <= allowed


def test_no_module_imports_itself_through_others():
    graph = {name: own(imports(path, on_import=True)) & set(MODULES) for name, path in MODULES.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_click_is_never_imported():
    """Typer ships its own copy: a clean installation has no `click`."""
    assert [name for name, path in MODULES.items() if "click" in {one.split(".")[0] for one in imports(path)}] == []
