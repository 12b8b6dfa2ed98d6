"""reviews: short, varied texts whose words follow their sentiment."""

from __future__ import annotations

import math

from freetf_cli.tasks import make_task

GOLDEN = (  # rows 0 and 2,000 of seed 7: if they change, runs are no longer reproducible
    (
        "The Paper Kitchen at Midnight is a much discussed western by an old hand. The first act is worse than ever. "
        "One of the worst films of the year.",
        {"sentiment": "negative", "genre": "western"},
    ),
    (
        "Above all, the duel in the rain is without any life. I hated the card game. The Second Wedding in the Dark: "
        "One of the worst films of the year.",
        {"sentiment": "negative", "genre": "western"},
    ),
)


def test_golden_rows() -> None:
    rows = [make_task("reviews", {}).examples(7, i, 1)[0] for i in (0, 2000)]
    assert tuple((row.text, row.factors) for row in rows) == GOLDEN


def test_reviews_are_short_varied_and_told_apart_by_their_words() -> None:
    rows = make_task("reviews", {}).examples(0, 0, 2000)
    assert max(len(row.text) for row in rows) <= 200 and all(row.text.isascii() for row in rows)
    assert len({row.text for row in rows}) == 2000, "held-out texts that stand in train too would measure what was memorised"
    assert not any("{" in row.text for row in rows)
    positive = sum(row.factors["sentiment"] == "positive" for row in rows)
    assert abs(positive - 1000) < 5 * math.sqrt(500)
    for row in rows:
        words = row.text.lower()
        other = "loved" if row.factors["sentiment"] == "negative" else "hated"
        assert other not in words
