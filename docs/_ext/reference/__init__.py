"""Puts the reference, made from the code, where a page says <!-- reference: NAME -->. PAGES lists the names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advbench.defaults.listing import KINDS
from reference import commands, entries, forms, public

if TYPE_CHECKING:
    from sphinx.application import Sphinx

PAGES = {
    "commands": commands.page,
    **{kind: lambda kind=kind: entries.page(kind) for kind in KINDS},
    "flags": forms.flags,
    "recipe": forms.recipe,
    "record": forms.record,
    "csv": forms.csv,
    "python": public.page,
}
_MARK = re.compile(r"^<!-- reference: (\w+) -->$", re.MULTILINE)
_UPWARDS = re.compile(r"\[([^\]]+)\]\((\.\./[^)#\s]+)(?:#[^)\s]*)?\)")
_DOCSTRING = re.compile(r"^<!-- docstring: ([\w.]+) -->$", re.MULTILINE)


def insert(app: Sphinx, page: str, source: list[str]) -> None:
    """Replace the marks in the text of a page that Sphinx has just read.

    A link to a file of the repository that is no page leads there on a code-hosting site; here its text remains.
    """
    source[0] = _MARK.sub(lambda mark: PAGES[mark[1]](), source[0])
    source[0] = _DOCSTRING.sub(lambda mark: public.docstring(mark[1]), source[0])
    folder = Path(app.env.doc2path(page)).parent

    def unlinked(link: re.Match[str]) -> str:
        file = folder.joinpath(link[2]).resolve()
        return link[0] if file.is_relative_to(app.srcdir) or not file.exists() else link[1]

    source[0] = _UPWARDS.sub(unlinked, source[0])


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("source-read", insert)
    return {"parallel_read_safe": True}
