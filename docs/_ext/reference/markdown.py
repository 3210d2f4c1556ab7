"""Pieces of MyST Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable

from advbench.defaults.wording import paragraphs

_ARXIV = re.compile(r"(?:arXiv:)?\b(\d{4}\.\d{4,5})\b")
_FLAG = re.compile(r"(?<![\w-])(--[a-z][a-z-]*)")
_SPECIAL = re.compile(r"([\\*_<>\[\]{}$|#~])")


def prose(text: str) -> str:
    """Plain text with `code` as Markdown: nothing else in it is markup, and arXiv numbers are links."""
    parts = re.split(r"(`[^`]+`)", _FLAG.sub(r"`\1`", text) if "`" not in text else text)
    return "".join(part if part.startswith("`") else _plain(part) for part in parts)


def _plain(text: str) -> str:
    escaped = _SPECIAL.sub(r"\\\1", text)
    return _ARXIV.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", escaped)


def docs(text: str) -> str:
    """A docstring as Markdown: prose, lists, and formulas as they stand."""
    found = []
    for is_prose, part in paragraphs(text):
        if not is_prose:
            found.append(f"```text\n{part}\n```")
        elif part.startswith("- "):
            found.append(f"- {prose(part[2:])}")
        else:
            found.append(prose(part))
    return re.sub(r"(^- .*)\n\n(?=- )", r"\1\n", "\n\n".join(found), flags=re.MULTILINE)


def anchored(name: str, anchor: str) -> str:
    """`name` as code that a link can point to."""
    return f"`{name}`{{#{slug(anchor)}}}"


def slug(anchor: str) -> str:
    """The form in which Sphinx keeps an anchor."""
    return re.sub(r"[^a-z0-9]+", "-", anchor.lower()).strip("-")


def described(items: Iterable[tuple[str, str]]) -> str:
    """A list of terms with their descriptions, each one line of Markdown."""
    return "\n\n".join(f"{term}\n: {text or '–'}" for term, text in items)


def fields(items: Iterable[tuple[str, str]]) -> str:
    """A list of labels and short facts."""
    return "\n".join(f":{label}: {text}" for label, text in items)


def folded(title: str, text: str) -> str:
    """Text that opens by a click."""
    return f"<details><summary>{title}</summary>\n\n{text}\n\n</details>"


def heading(level: int, title: str, anchor: str) -> str:
    return f"({slug(anchor)})=\n{'#' * level} {title}"


def sentence(text: str) -> str:
    """`text` with a capital and a full stop."""
    end = "" if not text or text.endswith(".") else "."
    return f"{text[:1].upper()}{text[1:]}{end}"


def contents(kind: str, names: Iterable[str]) -> str:
    """Links to the headings of a long page."""
    return " · ".join(f"[`{name}`](#{slug(f'{kind}-{name}')})" for name in names)
