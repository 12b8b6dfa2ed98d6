"""What every table of a recipe has in common: strict types, rules between its keys, and merging of one table over another.

class TrainConfig(ConfigTable):
    batch: Positive
    grad_accum_steps: Positive = 1

    @rule("grad_accum_steps", "batch")
    def _parts_are_equal(self) -> str | None:
        return None if self.batch % self.grad_accum_steps == 0 else "train.grad_accum_steps does not divide train.batch"
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from freetf_cli.errors import nearest

Positive = Annotated[int, Field(gt=0)]
NotNegative = Annotated[int, Field(ge=0)]
MOST = 1e38  # float32, in which torch computes, ends at 3.4e38
Rate = Annotated[float, Field(gt=0, le=MOST)]
Weight = Annotated[float, Field(ge=0, le=MOST)]

Check = TypeVar("Check", bound=Callable[[Any], str | None])


class Broken(NamedTuple):
    """A rule that does not hold. keys: the keys in the rule; the message is shown at the first."""

    keys: tuple[str, ...]
    message: str


def rule(*keys: str) -> Callable[[Check], Check]:
    """Mark a method of a table as a rule between its keys: the method returns what is wrong, or None.

    keys: those that the message is shown at, the one to blame first; a key of a table within this one is `table.key`.
    """

    def mark(check: Check) -> Check:
        check.rule_keys = keys  # type: ignore[attr-defined]
        return check

    return mark


class ConfigTable(BaseModel):
    """A table of a recipe: immutable, strict about types, no unknown keys, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @classmethod
    def completed(cls, given: Any) -> Any:
        """The given table, with the keys that other keys imply."""
        return given

    @classmethod
    def superseded(cls, base: Mapping[str, Any], over: Mapping[str, Any]) -> set[str]:
        """Keys of `base` that lose their meaning when `over` is laid over it."""
        return set()

    @classmethod
    def merge(cls, base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
        """`over` laid over `base`, key by key, tables too. An empty table changes nothing; an empty dictionary clears a value."""
        dropped = cls.superseded(base, over)
        merged = {key: value for key, value in base.items() if key not in dropped}
        for key, value in over.items():
            before, table = merged.get(key), table_of(cls.model_fields.get(key))
            if not (isinstance(before, Mapping) and isinstance(value, Mapping)):
                merged[key] = value
            elif table is not None:
                merged[key] = table.merge(before, value)
            else:
                merged[key] = {**before, **value} if value else {}
        return merged

    @classmethod
    def partial(cls, given: Mapping[str, Any], wrong: set[tuple[str, ...]], place: tuple[str, ...] = ()) -> ConfigTable:
        """The table without missing keys and those at the places in `wrong`, so that its other rules can still be checked."""
        made = cls.model_construct(**{key: value for key, value in cls.completed(given).items() if key in cls.model_fields})
        for key, value in list(made):
            here, table = (*place, key), table_of(cls.model_fields[key])
            if table is not None and isinstance(value, Mapping):
                made.__dict__[key] = table.partial(value, wrong, here)
            elif any(one[: len(here)] == here for one in wrong):
                del made.__dict__[key]
        return made

    def broken(self, within: str = "") -> Iterator[Broken]:
        """The broken rules of this table and of the tables inside it. A partial table skips the rules that read a missing key."""
        for key, value in self:
            if isinstance(value, ConfigTable):
                yield from value.broken(f"{within}{key}.")
        for check in _rules(type(self)):
            message = None
            with suppress(AttributeError):
                message = check(self)
            if message:
                yield Broken(tuple(within + key for key in check.rule_keys), message)

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, given: Any) -> Any:
        return cls.completed(given)

    @model_validator(mode="after")
    def _rules_hold(self) -> Self:
        if broken := list(self.broken()):
            raise ValueError("; ".join(one.message for one in broken))
        return self


def table_of(field: FieldInfo | None) -> type[ConfigTable] | None:
    """The type of the table that a key holds; None for a key that holds a value."""
    found = getattr(field, "annotation", None)
    for one in (found, *getattr(found, "__args__", ())):
        if isinstance(one, type) and issubclass(one, ConfigTable):
            return one
    return None


def _rules(table: type[ConfigTable]) -> list[Any]:
    """The rules of a table, in the order in which they are written."""
    return [member for member in vars(table).values() if hasattr(member, "rule_keys")]


def module_names(package: str, without: tuple[str, ...]) -> list[str]:
    """Names of the modules of one of our packages, found without importing it. without: modules that hold what the others share."""
    folder = Path(__file__).resolve().parent.parent / package
    return sorted(module.name for module in pkgutil.iter_modules([str(folder)]) if module.name not in without)


def known(what: str, names: list[str]) -> Callable[[str], str]:
    """A check that a value is one of the names: an error names the nearest one."""

    def check(name: str) -> str:
        if name not in names:
            raise PydanticCustomError("unknown_name", f"there is no {what} '{{name}}'", {"name": name, "hint": nearest(name, names)})
        return name

    return check
