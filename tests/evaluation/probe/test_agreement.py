"""Agreement of groups with a planted answer."""

import math

import numpy as np
import pytest

from freetf_cli.evaluation.probe.agreement import agreement, group_agreement
from freetf_cli.records import DataFacts

FACTS = DataFacts("letters", "letters", 29, 65, 65, 27.4, "", params={"length": 13, "target": 4})


def test_agreement_counts_pairs() -> None:
    here, there, none = "K>__KKKK_______", "K>____KKKK_____", "K>_____________"
    position, noise = group_agreement([[here, here, there], [there, none]], FACTS)
    assert (position.within, position.pairs_within) == (pytest.approx(1 / 3), 3)  # the pair without a target is left out
    assert (position.across, position.pairs_across) == (pytest.approx(1 / 3), 3)
    assert noise.pairs_within == 0 and math.isnan(noise.within)
    first, second = "K>_!KKKKK_!____", "K>_!_KKKK______"
    noise = group_agreement([[first, second], [here]], FACTS)[1]
    assert noise.within == pytest.approx(1 / 2)


def test_other_data_and_single_groups_have_no_agreement() -> None:
    assert group_agreement([["K>__KKKK_______"] * 2], FACTS) == []
    assert group_agreement([["a"], ["b"]], DataFacts("t", None, 257, 8, 8, None, "")) == []
    assert group_agreement([["a"], ["b"]], DataFacts("t", "blocks", 29, 8, 8, None, "")) == []
    assert group_agreement([["a"], ["b"]], DataFacts("t", "of another version", 257, 8, 8, None, "")) == []


def test_coins_agree_on_their_coin() -> None:
    facts = DataFacts("coins", "coins", 2, 5, 5, None, "", params={"length": 6, "flip": 0.1})
    (z,) = group_agreement([["011111", "111101"], ["100001", "100000"]], facts)
    assert (z.factor, z.within, z.across) == ("z", 1.0, 0.0)


@pytest.mark.parametrize("kind", ["values", "marks"])
def test_agreement_is_the_mean_over_all_pairs(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against loops over every pair, groups of several sizes, unread values and empty marks."""
    rng = np.random.default_rng(0)
    sizes = (4, 1, 5, 3)
    groups = [rng.integers(-1, 3, size=n) if kind == "values" else (rng.random((n, 6)) < 0.3).astype(np.int64) for n in sizes]

    def compared(a: np.ndarray, b: np.ndarray) -> float | None:
        if kind == "values":
            return None if -1 in (int(a), int(b)) else float(a == b)
        return float((a & b).sum() / (a | b).sum()) if (a | b).any() else None

    within = [compared(group[i], group[j]) for group in groups for i in range(len(group)) for j in range(i)]
    across = [compared(a, b) for i, one in enumerate(groups) for other in groups[:i] for a in one for b in other]
    found = agreement(kind, groups)
    for pairs, share, count in ((within, found.within, found.pairs_within), (across, found.across, found.pairs_across)):
        read = [value for value in pairs if value is not None]
        assert share == pytest.approx(np.mean(read)) and count == len(read)
    monkeypatch.setattr("freetf_cli.evaluation.probe.agreement.ALL_PAIRS", 3)
    assert agreement(kind, groups).within == pytest.approx(found.within)
