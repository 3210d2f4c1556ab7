"""What is registered: the names that commands and functions take. Loads no torch."""

from __future__ import annotations

from typing import Any

from advbench.errors import unknown
from advbench.registry import entries

KINDS = ("methods", "attacks", "models", "datasets", "analyses")
ALL = (*KINDS, "flags")
FOLDERS = {kind: {"datasets": "data"}.get(kind, kind) for kind in KINDS}


def listing(kind: str, filter: str | None = None) -> list[dict[str, Any]]:
    """All entries of `kind`, one of ALL, as plain values with at least `name` and `summary`. Raises UserError.

    With `filter`, those whose name or summary contains the text, in capitals or not.
    """
    if kind not in ALL:
        raise unknown("kind", str(kind), ALL)
    if kind == "models":
        from advbench.models.external import listing as models

        rows: list[dict[str, Any]] = [dict(row) for row in models()]
    elif kind == "flags":
        from advbench.record.glossary import GROUPS  # whose package loads NumPy

        rows = [
            {"name": name, "summary": one.meaning, "severity": one.severity, "what_to_do": one.action, "group": group}
            for group, flags in GROUPS.items()
            for name, one in flags.items()
        ]
    else:
        rows = [
            {"name": name, "summary": entry.summary, **entry.about} for name, entry in entries(FOLDERS[kind]).items()
        ]
    wanted = (filter or "").casefold()
    return [row for row in rows if wanted in f"{row['name']} {row['summary']}".casefold()]
