"""The tests of HumanEval+ and MBPP+ (EvalPlus, Liu et al., arXiv 2305.01210) as code that runs after a generated program.

EvalPlus's further tests are inputs without results, so a program's results are compared with those of the canonical solution. The inputs
are JSON, which has no tuples, sets or complex numbers. MBPP's own assertions show what types a function takes and how its result is read:

    assert set(f([1, 2], (3, 4))) == {5}        the second argument becomes a tuple; results are compared as sets
    assert not f("x")                           only the truth of the results is compared
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeGuard

TAG = "freetf type"  # the key that marks a tuple, set or complex number in the inputs' JSON
# Functions whose results EvalPlus compares as sets, although MBPP's assertions do not.
UNORDERED = ("similar_elements", "extract_singly", "find_dissimilar", "Diff")
# Runs after the generated code, with EvalPlus's tolerances. HumanEval's find_zero has several right results, so its result is inserted into
# the polynomial. An exception in the canonical solution fails the program, since nothing could be compared.
HARNESS = """
def _freetf_value(found):
    if list(found) != [TAG]:
        return found
    kind, values = found[TAG]
    return complex(*values) if kind == "complex" else {"tuple": tuple, "set": set}[kind](values)

def _freetf_same(one, other, tolerance):
    if isinstance(one, float) or isinstance(other, float):
        import math
        return one == other or math.isclose(one, other, rel_tol=1e-7, abs_tol=max(tolerance, 1e-6)) or (one != one and other != other)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(_freetf_same(a, b, tolerance) for a, b in zip(one, other))
    return one == other

def _freetf_compare(function, name, solution, inputs, tolerance, read=lambda result: result):
    import copy, json
    right = {"__name__": "solution"}
    exec(solution, right)
    canonical = right[name]
    for values in json.loads(inputs, object_hook=_freetf_value):
        expected = canonical(*copy.deepcopy(values))
        found = function(*copy.deepcopy(values))
        if name == "find_zero":
            assert abs(sum(c * found**i for i, c in enumerate(values[0]))) <= 1e-4, (values, found)
        else:
            assert _freetf_same(read(found), read(expected), tolerance), (values, found, expected)
""".replace("TAG", repr(TAG))


def same_results(row: Mapping[str, Any], solution: str) -> str:
    """Code that compares a function's results with those of the canonical solution on all inputs of a task."""
    inputs, read = [*row["base_input"], *row["plus_input"]], ""
    if "assertion" in row:  # MBPP+
        examples, read = shown(row["assertion"], row["entry_point"])
        inputs = _tagged(arguments(inputs, examples))
    name, text = row["entry_point"], json.dumps(inputs)
    call = ", ".join([name, repr(name), repr(solution), repr(text), repr(row["atol"] or 0), *filter(None, [read])])
    return f"\n{HARNESS}\n_freetf_compare({call})\n"


def typed(value: Any, examples: Sequence[Any], around: type | None = None) -> Any:
    """A JSON value with the types of the examples. around: the type of the lists around it, if they are all alike.

    A list becomes what the examples have in its place, or, if it is nested deeper than any example, what the lists around it became.
    """
    if isinstance(value, list):
        kinds = [example for example in examples if isinstance(example, (list, tuple, set))]
        kind: Any = type(kinds[0]) if kinds else around or list
        inner = [one for example in kinds for one in example]
        return kind(typed(one, inner, kind if around in (None, kind) else list) for one in value)
    if isinstance(value, dict):
        inner = [one for example in examples if isinstance(example, dict) for one in example.values()]
        return {key: typed(one, inner) for key, one in value.items()}
    return value


def arguments(calls: Sequence[Sequence[Any]], examples: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """The arguments of calls with the types of the examples. EvalPlus writes the arguments of a function of complex numbers as strings."""
    numbers = all(isinstance(example, (int, float, complex)) for column in examples for example in column)
    if numbers and any(isinstance(value, str) and value.strip("()").endswith("j") for values in calls for value in values):
        with suppress(ValueError):
            return [[complex(value) for value in values] for values in calls]
    return [[typed(value, column) for value, column in zip(values, examples, strict=True)] for values in calls]


def shown(assertion: str, name: str) -> tuple[list[list[Any]], str]:
    """What MBPP's assertions show of a function: the literals passed as each argument, and how its result is read ("", "set" or "bool")."""
    tests = [node.test for node in ast.parse(assertion).body if isinstance(node, ast.Assert)]
    calls = [node for test in tests for node in ast.walk(test) if _calls(node, name)]
    arguments = [[_literals(argument) for argument in column] for column in zip(*(call.args for call in calls), strict=True)]
    examples = [[value for values in column for value in values] for column in arguments]
    wrapped = [node.args[:1] for test in tests for node in ast.walk(test) if _calls(node, "set")]
    if name in UNORDERED or any([call] in wrapped for call in calls):
        return examples, "set"
    bare = all(test in calls or (isinstance(test, ast.UnaryOp) and test.operand in calls) for test in tests)
    return examples, "bool" if bare else ""


def _calls(node: ast.AST, name: str) -> TypeGuard[ast.Call]:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name


def _literals(argument: ast.expr) -> list[Any]:
    """The value of an argument; empty for an expression such as `14 * 14`."""
    try:
        return [ast.literal_eval(argument)]
    except ValueError:
        return []


def _tagged(value: Any) -> Any:
    """A value as JSON. Tuples, sets and complex numbers, which JSON lacks, are marked; `_freetf_value` in the harness restores them."""
    if isinstance(value, complex):
        return {TAG: ["complex", [value.real, value.imag]]}
    if isinstance(value, (tuple, set)):
        return {TAG: [type(value).__name__, [_tagged(one) for one in value]]}
    if isinstance(value, list):
        return [_tagged(one) for one in value]
    return {key: _tagged(one) for key, one in value.items()} if isinstance(value, dict) else value
