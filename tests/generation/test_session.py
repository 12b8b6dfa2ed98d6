"""Flipping bits where tokens share a Z, and where some positions read none."""

from __future__ import annotations

from typing import Any

import pytest

from freetf_cli.config.recipe import LatentConfig, ModelConfig
from freetf_cli.data.tokenizer import characters
from freetf_cli.errors import InputError
from freetf_cli.generation.sampling import SampleSpec
from freetf_cli.generation.session import Session
from freetf_cli.latent.build import build_model, initialise_model


def session(**latent: Any) -> Session:
    model = build_model(ModelConfig(layers=2, width=16, heads=2, vocab=6, context=12), LatentConfig(kappa=1.0, bits=4, **latent))
    initialise_model(model, 0)
    return Session(model.eval(), characters("abcdef", separator=False), "a", SampleSpec(total=9))


def changed(one: Session, **flip: Any) -> list[tuple[int, int]]:
    """The positions that a flip changes, each with what changes in its code."""
    before = one.z
    one.flip(**flip)
    return [(t, old ^ new) for t, (old, new) in enumerate(zip(before, one.z, strict=True)) if old != new]


def test_tokens_that_share_a_z_change_together() -> None:
    assert changed(session(), places=[(4, 1)]) == [(4, 2)]
    assert changed(session(every=3), places=[(4, 1)]) == [(3, 2), (4, 2), (5, 2)]
    assert changed(session(every="sequence"), places=[(4, 1)]) == [(t, 2) for t in range(8)]
    one = session(every=3)
    assert changed(one, count=12) == [(t, 15) for t in range(8)], "all bits of the three Zs"
    with pytest.raises(InputError, match="there are 12 bits, not 13"):
        one.flip(count=13)


def test_records_have_one_z_where_tokens_share_one() -> None:
    for every in (3, "sequence"):
        model = build_model(ModelConfig(layers=2, width=16, heads=2, vocab=6), LatentConfig(kappa=1.0, bits=4, every=every))
        assert model.latent is not None
        model.latent.check_record([5, 5, 5, 5])
        with pytest.raises(ValueError, match=r"positions 0 and 1 share a Z .*, and the record has two"):
            model.latent.check_record([5, 4, 4, 4])


def test_bits_that_no_position_reads_are_refused() -> None:
    one = session(window=2, beyond="nothing")
    assert changed(one, count=8) == [(0, 15), (1, 15)]
    with pytest.raises(InputError, match=r"there is no bit 2\.0; positions are 0 … 1"):
        one.flip([(2, 0)])
