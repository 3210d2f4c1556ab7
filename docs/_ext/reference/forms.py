"""The pages of flags, and of the fields of recipes, records and CSV files."""

from __future__ import annotations

import typing
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from advbench.defaults.signatures import meanings, shown, written
from advbench.leaderboard.csv import COLUMNS
from advbench.recipe import Recipe
from advbench.record import Record
from advbench.record.black_box import WINS
from advbench.record.glossary import BLACK_BOX_AHEAD, GROUPS, SEVERITIES
from reference import markdown as md


def flags() -> str:
    parts = ["\n".join(f"- **{name}**: {text}." for name, text in SEVERITIES.items())]
    for group, those in GROUPS.items():
        parts += [f"## {group}", md.contents("flags", those)]
        for name, one in those.items():
            title = f"`square{WINS}`" if name == BLACK_BOX_AHEAD else f"`{name}`"
            more = [f"The name is `{name}` for any attack NAME."] if name == BLACK_BOX_AHEAD else []
            parts.append(md.heading(3, title, f"flags-{name}"))
            parts += [f"[{md.prose(one.severity)}]{{.kind}}", md.prose(md.sentence(one.meaning)), *more]
            parts.append(f"**To do**: {md.prose(one.action)}.")
    return "\n\n".join(parts)


def recipe() -> str:
    return _parts("recipe", Recipe, "", 2)


def record() -> str:
    return _parts("record", Record, "", 2)


def csv() -> str:
    return md.described((md.anchored(name, f"csv-{name}"), md.prose(md.sentence(text))) for name, text, _ in COLUMNS)


def _parts(page: str, part: type[BaseModel], prefix: str, level: int) -> str:
    """The fields of a part, and after them each part within it, by dotted names."""
    known, terms, inside = meanings(part.__doc__), [], []
    for name, field in part.model_fields.items():
        key = field.alias or name
        path = f"{prefix}{key}"
        nested = [one for one in (field.annotation, *typing.get_args(field.annotation)) if _is_part(one)]
        inside += [(path, one) for one in nested]
        plain = nested or field.default in (PydanticUndefined, None, {}, ())
        default = "" if plain else f" = `{shown(field.default)}`"
        kind = f"[{md.prose(written(field))}]{{.kind}}"
        link = f"See [{path}](#{md.slug(f'{page}-part-{path}')})." if nested else ""
        meaning = md.prose(md.sentence(known.get(key) or known.get(name, "")))
        terms.append((f"{md.anchored(path, f'{page}-{path}')}{default} {kind}", f"{meaning} {link}".strip()))
    parts = [md.described(terms)]
    for path, one in inside:
        parts += [md.heading(level, f"`{path}`", f"{page}-part-{path}"), md.prose(_opening(one))]
        parts.append(_parts(page, one, f"{path}.", level))
    return "\n\n".join(filter(None, parts))


def _is_part(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _opening(part: type[BaseModel]) -> str:
    return " ".join((part.__doc__ or "").split("\n\n")[0].split())
