"""Pages of methods, attacks, models, datasets and analyses: a section for each entry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from advbench.defaults.describing import describe
from advbench.defaults.listing import FOLDERS, listing
from advbench.defaults.signatures import shown
from advbench.defaults.wording import facts, how
from advbench.registry import Entry
from advbench.registry import entries as registered
from reference import markdown as md


def page(kind: str) -> str:
    """All entries, those of one maker together, the plainest of them first with all that they share."""
    parts = [md.contents(kind, sorted(registered(FOLDERS[kind])))]
    for group in _groups(registered(FOLDERS[kind])):
        first, *others = (describe(kind, entry.name) for entry in group)
        parts.append(_section(first))
        parts += [_variant(one, first) for one in others]
    if kind == "models":
        forms = [row for row in listing(kind) if row["kind"] == "form" or str(row["name"]).startswith("pyautoattack")]
        parts += [_section(describe(kind, str(row["name"]))) for row in forms]
    return "\n\n".join(parts)


def _groups(known: Mapping[str, Entry]) -> list[list[Entry]]:
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in known.values():
        groups.setdefault((entry.module, entry.make), []).append(entry)
    for group in groups.values():
        group.sort(key=lambda entry: (len(entry.set), entry.name))
    return sorted(groups.values(), key=lambda group: group[0].name)


def _start(found: Mapping[str, Any], hidden: tuple[str, ...] = ()) -> list[str]:
    """Heading, summary, facts and example."""
    kind, name = found["kind"], found["name"]
    short = [(label, md.prose(text)) for label, text in facts(found) if label not in hidden]
    return [
        md.heading(2, f"`{name}`", f"{kind}-{name}"),
        md.prose(md.sentence(found["summary"])),
        f"```console\n$ {found['example']}\n```",
        md.fields(short),
    ]


def _section(found: Mapping[str, Any]) -> str:
    parts = _start(found)
    if found.get("settings"):
        parts += [f"**Settings**, by `{how(found)}`:", md.described(_terms(found, found["settings"]))]
    if found.get("details"):
        parts.append(md.folded("How it works", md.docs(found["details"])))
    return "\n\n".join(filter(None, parts))


def _variant(found: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    """An entry whose maker has been shown: what differs."""
    shared = tuple(label for label, text in facts(first) if (label, text) in facts(found))
    usual = {one["name"]: one for one in first.get("settings", ())}
    changed = [one for one in found.get("settings", ()) if one.get("default") != usual[one["name"]].get("default")]
    link = f"[{first['name']}](#{md.slug(first['kind'] + '-' + first['name'])})"
    parts = _start(found, shared)
    if changed:
        parts += [f"Settings as of {link}, but for:", md.described(_terms(found, changed))]
    else:
        parts.append(f"All else as of {link}.")
    return "\n\n".join(filter(None, parts))


def _terms(found: Mapping[str, Any], settings: list[dict[str, Any]]) -> list[tuple[str, str]]:
    terms = []
    for one in settings:
        default = f" = `{shown(one['default'])}`" if "default" in one else " (required)"
        name = one.get("flag", one["name"])
        anchor = f"{found['kind']}-{found['name']}-{one['name']}"
        kind = f"[{md.prose(one['type'])}]{{.kind}}"
        terms.append((f"{md.anchored(name, anchor)}{default} {kind}", md.prose(md.sentence(one["meaning"]))))
    return terms
