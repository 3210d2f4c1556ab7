"""What is registered: the names that commands and functions take. Loads no torch."""

from __future__ import annotations

from typing import Any

from advbench.errors import unknown
from advbench.registry import entries

KINDS = ("methods", "attacks", "models", "datasets", "analyses")


def listing(kind: str, filter: str | None = None) -> list[dict[str, Any]]:
    """All entries of `kind` as plain values with at least `name` and `summary`. Raises UserError.

    With `filter`, those whose name or summary contains the text, in capitals or not.
    """
    if kind not in KINDS:
        raise unknown("kind", str(kind), KINDS)
    if kind == "models":
        from advbench.models.external import listing as models

        rows = [dict(row) for row in models()]
    else:
        known = entries({"datasets": "data"}.get(kind, kind))
        rows = [{"name": name, "summary": entry.summary, **entry.about} for name, entry in known.items()]
    wanted = (filter or "").casefold()
    return [row for row in rows if wanted in f"{row['name']} {row['summary']}".casefold()]
