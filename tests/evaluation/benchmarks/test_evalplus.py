"""EvalPlus's tests of a program: the types of inputs, how results are read, and what the code of the tests accepts."""

from __future__ import annotations

import pytest

from freetf_cli.evaluation.benchmarks import evalplus, sandbox


@pytest.mark.parametrize(
    ("assertion", "given", "made"),
    [
        ("assert f((1, 2), [3]) == 0", [[5], [6, 7]], [(5,), [6, 7]]),
        ("assert f([(1, 'a')]) == 0", [[[2, "b"], [3]]], [[(2, "b"), (3,)]]),
        ("assert f((1, (2, (3,)))) == 0", [[1, [2, [3, [4, [5]]]]]], [(1, (2, (3, (4, (5,)))))]),  # deeper than the example
        ("assert f([(1, 2)]) == 0", [[[1, [2]]]], [[(1, [2])]]),  # a list in a tuple in a list: its type is not known
        ("assert f({1}, {'a': (1, 2)}) == 0", [[7, 7], {"b": [3]}], [{7}, {"b": (3,)}]),
        ("assert f(0, 1j) == 0", ["2", "3j"], [2 + 0j, 3j]),
        ("assert f(1) == 0", ["(1-2j)"], [1 - 2j]),
        ("assert f(1) == 0", ["a j"], ["a j"]),
        ("assert f('j') == 0", ["2j"], ["2j"]),
        ("assert f(14 * 14)", [49], [49]),
        ("import math\nassert math.isclose(f((1.0,)), 2.0, rel_tol=0.1)", [[3]], [(3,)]),
    ],
)
def test_inputs_get_the_types_that_the_assertions_show(assertion: str, given: list, made: list) -> None:
    examples, _ = evalplus.shown(assertion, "f")
    (found,) = evalplus.arguments([given], examples)
    assert found == made and repr(found) == repr(made)


@pytest.mark.parametrize(
    ("assertion", "read"),
    [
        ("assert f(1) == {2}", ""),
        ("assert set(f(1)) == set([2])", "set"),
        ("assert f(1)\nassert not f(2)", "bool"),
        ("assert f(1)\nassert f(2) == 3", ""),
        ("assert f(1) == set([2])", ""),
        ("assert set(g(1)) == f(1)", ""),
        ("assert Diff(1) == [2]", "set"),
    ],
)
def test_results_are_read_as_in_the_assertions(assertion: str, read: str) -> None:
    assert evalplus.shown(assertion, "Diff" if "Diff" in assertion else "f")[1] == read


TASK = {
    "entry_point": "f",
    "base_input": [[[1, 2], "x"]],
    "plus_input": [[[3, 1], "y"]],
    "atol": 0,
    "assertion": "assert f((1, 2), 'x') == 0",
}
SOLUTION = "def f(pair, word):\n    return sorted(pair + (0,))\n"


def outcome(program: str, solution: str = SOLUTION, **task: object) -> str:
    return sandbox.run(program + evalplus.same_results({**TASK, **task}, solution))


def test_programs_are_compared_with_the_canonical_solution() -> None:
    assert outcome(SOLUTION) == "passed"
    assert outcome(SOLUTION.replace("sorted(", "list(")).startswith("AssertionError")
    assert outcome("def f(pair, word):\n    return sorted([*pair, 0])\n") == "passed"
    backwards = "def f(pair, word):\n    return sorted(pair + (0,))[::-1]\n"
    assert outcome(backwards).startswith("AssertionError")
    assert outcome(backwards, assertion="assert set(f((1, 2), 'x')) == {0, 1, 2}") == "passed"
    truth = "def f(pair, word):\n    return bool(word == 'x')\n"
    match = "def f(pair, word):\n    import re\n    return re.search('x', word)\n"
    assert outcome(truth, match, assertion="assert f((1, 2), 'x')") == "passed"
    assert outcome(truth.replace("==", "!="), match, assertion="assert f((1, 2), 'x')").startswith("AssertionError")


def test_a_canonical_solution_that_fails_passes_nothing() -> None:
    failing = "def f(pair, word):\n    return 1 / 0\n"
    assert outcome("def f(pair, word):\n    return 0\n", failing).startswith("ZeroDivisionError")


def test_complex_numbers_reach_the_program() -> None:
    task = {"assertion": "assert f(0, 1j) == 1", "base_input": [["0", "1j"]], "plus_input": [["2", "(1-3j)"], ["2", "0.5"]]}
    assert outcome("def f(a, b):\n    return (a + b).imag\n", "def f(a, b):\n    return (b + a).imag\n", **task) == "passed"
