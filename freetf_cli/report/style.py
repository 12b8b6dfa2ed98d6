"""The style sheet page.css, as a whole or by its sections `colours`, `page` and `samples`."""

from __future__ import annotations

import re
from importlib.resources import files


def sheet(*sections: str) -> str:
    """The CSS of some sections, or of all."""
    text = files("freetf_cli.report").joinpath("page.css").read_text(encoding="utf-8")
    _, *parts = re.split(r"/\* section: (\w+) \*/\n", text)
    found = dict(zip(parts[::2], parts[1::2], strict=True))
    return "".join(found[name] for name in sections or found)
