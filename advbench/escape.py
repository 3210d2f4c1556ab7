"""Text from records and users, made harmless where it is shown: terminals, Markdown, CSV."""

from __future__ import annotations

import re
import unicodedata

_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # controls, direction marks, surrogates, line separators
_FORMULA = tuple("=+-@\t\r\n＝＋－＠")  # what spreadsheets take for the start of a formula


def visible(text: str) -> str:
    """`text` on one line, with characters that act instead of showing written as escapes such as \\x1b."""
    return "".join(_escape(char) if unicodedata.category(char) in _HIDDEN else char for char in text)


def markdown(text: str) -> str:
    """`text` for a Markdown table cell: no markup, HTML, link, mention or extra column comes of it."""
    safe = visible(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    safe = re.sub(r"([\\`*\[\]|~$])", r"\\\1", safe)
    safe = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", safe)  # inside a word it means nothing
    safe = re.sub(r"(?i)(?<=www)\.", "&#46;", safe).replace("://", "&#58;//")
    return safe.replace("@", "&#64;&#8288;").replace("#", "\0").replace("&\0", "&#").replace("\0", "#&#8288;")


def csv_text(text: str) -> str:
    """`text` for a CSV cell: with a ' before it where a spreadsheet would take it for a formula."""
    shown = visible(text)
    return f"'{shown}" if shown.startswith(_FORMULA) or text.startswith(_FORMULA) else shown


def _escape(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"
