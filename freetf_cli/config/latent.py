"""The table `[latent]` (what Z is), with `[latent.objective]` (the terms of the loss) and `[latent.numerics]`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from freetf_cli.config.table import MOST, ConfigTable, NotNegative, Positive, Weight, known, module_names, rule

KINDS = module_names("latent", without=("bits", "build", "low_order", "objective"))
Kind = Annotated[str, AfterValidator(known("kind of latent", KINDS)), Field(json_schema_extra={"enum": list(KINDS)})]
Share = Annotated[float, Field(ge=0, le=1)]
ARCHITECTURE = {
    "kind",
    "bits",
    "depth",
    "window",
    "beyond",
    "encoder",
    "table",
    "every",
    "options",
}  # decide the weights' shapes and the forward pass


class ObjectiveConfig(ConfigTable):
    """How free bits are counted, and terms of the loss beside the paper's. Models that differ only here have the same architecture."""

    free_bits: Literal["token", "sequence"] = Field(
        "token", description="κ is granted to each token (equation 5 of the paper), or pooled over a sequence"
    )
    slope: Share = Field(0.0, description="weight of the KL below κ (0: the paper's objective; 1: no free bits, the ELBO)")
    mismatch: Weight = Field(
        0.0, description="weight of the divergence of the aggregate posterior from the prior (0: the paper's objective)"
    )
    mismatch_over: Literal["sequence", "token"] = Field(
        "sequence", description="that divergence over all bits of a sequence together, or summed over its tokens"
    )
    beta: Weight = Field(1.0, description="weight of all these terms together, beside the cross-entropy (1: the paper's objective)")
    credit_from: NotNegative = Field(
        0, description="the encoder learns only from what Z saves from this target of a sequence on (0: from all, the paper's objective)"
    )
    schedule: dict[Literal["kappa", "slope", "mismatch", "beta"], list[list[float]]] = Field(
        default_factory=dict,
        description="values of `kappa`, `slope`, `mismatch` and `beta` during a run: points `[share of it, value]`, then `[share]`, where"
        " the key's own value is reached",
    )

    @property
    def has_mismatch(self) -> bool:
        """Whether the mismatch term is part of the loss, at any time of the run."""
        return self.mismatch > 0 or "mismatch" in self.schedule


class NumericsConfig(ConfigTable):
    """How the gradient of Z is computed."""

    gradient: Literal["paper", "heun"] = Field(
        "paper",
        description="estimator of the gradient of the bits: equation 8 of the paper, or the mean of the slopes at both values of a bit",
    )
    float8: bool = Field(
        False,
        description="8-bit floating point for the matrix product in that gradient, on GPUs that have it: faster, with an error of 4 %",
    )


class TableConfig(ConfigTable):
    """The table that turns codes into vectors. `latent.table = "full"`, the default, is the paper's: a vector for each of 2^H codes."""

    order: Positive | None = Field(
        None,
        description="learn a vector for each set of at most so many bits, whose signed sum a code's vector is: for 16 bits 16, 136 and 696"
        " vectors with 1, 2 and 3. Default: a vector for each code",
    )

    @classmethod
    def completed(cls, given: Any) -> Any:
        """No keys for `"full"`."""
        return {} if given == "full" else given


class LatentConfig(ConfigTable):
    """The latent Z of a Free Transformer. A recipe without this table is a baseline."""

    kappa: Weight = Field(description='free bits per token, κ; also as a fraction, `"1/64"`, or `--set latent.kappa=1/64`')
    kind: Kind = Field("binary", description="kind of latent: a module of `freetf_cli/latent/`; binary is the paper's")
    bits: Annotated[int, Field(ge=1, le=24)] = Field(16, description="bits of Z per token, H")
    depth: Positive | None = Field(None, description="number of blocks before Z is injected; default: layers / 2")
    window: Positive | None = Field(
        None,
        description="Z of the first so many positions is inferred, Z of later ones is drawn from the prior, in training too. Default: all",
    )
    every: Positive | Literal["sequence"] = Field(
        1, description='number of tokens that share one Z, which the first of them infers: 1 is the paper\'s; "sequence": all of a row'
    )
    beyond: Literal["prior", "nothing"] = Field(
        "prior", description="what positions after the window read: Z from the prior, or no Z, in generation too"
    )
    encoder: Literal["shared", "full"] = Field(
        "shared", description="the encoder reads the decoder's lower half (as in the paper), or blocks of its own (its Figure 1b)"
    )
    table: TableConfig = Field(default_factory=TableConfig, description="the post-sampler's table, below")
    table_init: Literal["bits", "independent"] = Field(
        "bits", description="initial rows of the post-sampler: sums of H bit directions, or drawn independently"
    )
    table_std: Weight = Field(1.5, description="initial standard deviation of the post-sampler's entries")
    options: dict[str, Any] = Field(default_factory=dict, description="settings of a kind other than binary")
    objective: ObjectiveConfig = Field(default_factory=ObjectiveConfig, description="terms of the loss, below")
    numerics: NumericsConfig = Field(default_factory=NumericsConfig, description="how the gradient is computed, below")

    @classmethod
    def completed(cls, given: Any) -> Any:
        """κ as a number where it is given as the paper and all reports write it: `"1/64"`."""
        text = given.get("kappa") if isinstance(given, Mapping) else None
        found = re.fullmatch(r"(\d{1,9})/([1-9]\d{0,8})", text) if isinstance(text, str) else None
        return {**given, "kappa": int(found[1]) / int(found[2])} if found else given

    @classmethod
    def superseded(cls, base: Mapping[str, Any], over: Mapping[str, Any]) -> set[str]:
        """Naming another kind drops the options of the old one."""
        before = base.get("kind", cls.model_fields["kind"].default)
        return {"options"} if over.get("kind", before) != before else set()

    @property
    def has_bits(self) -> bool:
        """Whether each token has H bits."""
        return self.kind in ("binary", "plan")

    @rule("kappa", "bits")
    def _kappa_fits_the_bits(self) -> str | None:
        if not self.has_bits or self.kappa <= self.bits:
            return None
        return f"latent.kappa = {self.kappa:g} is more than latent.bits = {self.bits}: a token holds no more"

    @rule("table.order", "bits")
    def _sets_have_enough_bits(self) -> str | None:
        if self.table.order is None or self.table.order <= self.bits:
            return None
        return f"latent.table.order = {self.table.order} is more than latent.bits = {self.bits}: no set has so many bits"

    @rule("beyond", "window")
    def _something_is_beyond(self) -> str | None:
        return "latent.beyond = 'nothing' needs latent.window" if self.beyond == "nothing" and self.window is None else None

    @rule("objective.schedule", "bits")
    def _schedules_are_paths(self) -> str | None:
        most = {"kappa": float(self.bits) if self.has_bits else MOST, "slope": 1.0}
        for name, path in self.objective.schedule.items():
            if fault := _check_path(path, most.get(name, MOST)):
                return f"latent.objective.schedule.{name}{fault}"
        return None


def _check_path(path: list[list[float]], most: float) -> str | None:
    """What is wrong with the points of a schedule whose values go up to `most`."""
    if [len(point) for point in path] != [2] * (len(path) - 1) + [1]:
        return " takes points [share, value] and ends with [share], where the key's own value is reached"
    shares = [point[0] for point in path]
    if shares != sorted(set(shares)) or shares[0] < 0 or shares[-1] > 1:
        return ": shares of the run must rise, from 0 to 1"
    outside = next((value for _, value in path[:-1] if not 0 <= value <= most), None)
    return None if outside is None else f": {outside:g} is not between 0 and {most:g}"
