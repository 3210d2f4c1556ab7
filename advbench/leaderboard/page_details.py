"""What a row of the page unfolds, as HTML. Every text of a record passes `text`."""

from __future__ import annotations

import html

from advbench.escape import visible
from advbench.leaderboard.cells import count, link, percent
from advbench.record import WINS, Flag, Record
from advbench.record.glossary import BLACK_BOX_AHEAD, GLOSSARY
from advbench.registry import entries


def text(raw: str) -> str:
    """`raw` as text of HTML, on one line, where it makes no tag, entity or attribute."""
    return html.escape(visible(raw))


def details(record: Record) -> dict[str, str]:
    """Terms and what is said of them; empty where it is not known."""
    model, environment = record.model, record.environment
    passes = "" if record.passes_an_image is None else f", {count(record.passes_an_image)} passes an image"
    certified = [
        f"{percent(point.certified, record.n)} at {point.eps_text} (gap {percent(point.gap, record.n)})"
        for point in record.curve
        if point.certified is not None and point.gap is not None
    ]
    return {
        "model": f"{text(model.title)}: {text(model.arch)}, {model.params:,} parameters",
        "training": text(_training(record)),
        "paper": _paper(model.trained.method) if model.trained else "",
        "certified, %": text(", ".join(certified)),
        "mean corruption error, %": percent(record.corruptions.mce, record.n) if record.corruptions else "",
        "cost": f"{record.seconds:,.0f} s of attacks on {record.n:,} images{passes}",
        "flags": "<br>".join(_flag(record, flag) for flag in record.flags),
        "weights": f"<code>{model.weights_sha256}</code>",
        "measured": text(f"{environment.date[:10]} by advbench {environment.advbench}, engine {record.engine.version}"),
        "record": f'<a href="{link(record)}">{record.id}</a>',
    }


def _training(record: Record) -> str:
    trained = record.model.trained
    if trained is None:
        return ""
    size = f"{trained.norm or ''} eps {trained.eps_text}".strip() if trained.eps_text else ""
    seed = "" if trained.seed is None else f"seed {trained.seed}"
    shown = "" if trained.images_shown is None else f"{count(trained.images_shown)} images shown"
    cost = "" if trained.passes_an_image is None else f"{count(trained.passes_an_image)} passes an image"
    return ", ".join(part for part in (trained.method, size, seed, shown, cost) if part)


def _paper(method: str) -> str:
    entry = entries("methods").get(method)
    about = entry.about if entry else {}
    title = text(", ".join(str(about[key]) for key in ("paper", "year") if about.get(key)))
    arxiv = about.get("arxiv")
    return f'<a href="https://arxiv.org/abs/{text(str(arxiv))}" rel="noreferrer">{title}</a>' if arxiv else title


def _flag(record: Record, flag: Flag) -> str:
    """What was found and, where it is no mere note, what to do."""
    said = f"<b>{text(record.words(flag))}</b> {text(flag.detail)}"
    known = GLOSSARY.get(flag.name) or (GLOSSARY[BLACK_BOX_AHEAD] if flag.name.endswith(WINS) else None)
    if known is None or flag.severity == "note":
        return said
    return f"{said.rstrip('.')}. What to do: {text(known.action)}."
