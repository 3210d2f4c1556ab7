"""Text from records and users, made safe to show in terminals, Markdown and CSV, and short."""

from __future__ import annotations

import re
import unicodedata

_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # control characters, direction marks, surrogates, line separators
_FORMULA = tuple("=+-@\t\r\n＝＋－＠")  # characters with which spreadsheets start a formula


def visible(text: str) -> str:
    """`text` on one line, with invisible and control characters written as escapes such as \\x1b."""
    return "".join(_escape(char) if unicodedata.category(char) in _HIDDEN else char for char in text)


def markdown(text: str) -> str:
    """`text` for a Markdown table cell, where it makes no markup, HTML, link, mention or further column."""
    safe = visible(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    safe = re.sub(r"([\\`*\[\]|~$])", r"\\\1", safe)
    safe = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", safe)  # inside a word it is no markup
    safe = re.sub(r"(?i)(?<=www)\.", "&#46;", safe).replace("://", "&#58;//")
    return safe.replace("@", "&#64;&#8288;").replace("#", "\0").replace("&\0", "&#").replace("\0", "#&#8288;")


def csv_text(text: str) -> str:
    """`text` for a CSV cell, after a ' where a spreadsheet would read it as a formula."""
    shown = visible(text)
    return f"'{shown}" if shown.startswith(_FORMULA) or text.startswith(_FORMULA) else shown


def without_middle(text: str, kept: int, dots: str) -> str:
    """`text` with `dots` in place of its middle, of which `kept` characters are left: both ends tell names apart."""
    end = kept // 2
    return f"{text[: kept - end]}{dots}{text[len(text) - end :]}"


def _escape(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"
