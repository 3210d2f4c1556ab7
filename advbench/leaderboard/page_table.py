"""The table of a protocol on the page, as HTML. Every text of a record passes `text`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from advbench.eps import CORRUPTIONS
from advbench.leaderboard.cells import count, interval, listed, percent, spread
from advbench.leaderboard.page_details import details, text
from advbench.leaderboard.protocol import Protocol
from advbench.leaderboard.ranking import Board, Table
from advbench.leaderboard.seeds import series
from advbench.leaderboard.shown_eps import eps_label, shown_eps
from advbench.record import CurvePoint, Record, measured_eps


class Column(NamedTuple):
    """A column of accuracies at `eps`. `key` names it in the script, `kind` to the style."""

    key: str
    kind: str
    eps: float
    label: str


def table_html(table: Table, board: Board, names: Mapping[str, str]) -> str:
    """The ranking of a protocol, the models below the line, and the means over seeds. `names` are by record id."""
    columns = _columns(table, board)
    unit = "severity" if board.norm == CORRUPTIONS else "eps"
    head = [("rank", "n", "#"), ("model", "", "model"), ("method", "minor", "method")]
    head += [("arch", "minor arch", "architecture"), ("clean", "n", "clean")]
    head += [(one.key, f"n {one.kind}", f"<small>{unit}</small> {one.label}") for one in columns]
    head += [("auc", "n minor", "auc"), ("passes", "n minor", "<small>attack</small> passes")]
    head += [("flags", "minor", "flags")]
    rows = [_row(str(place), record, names, columns) for place, record in enumerate(table.ranked, start=1)]
    line = f'<th colspan="{len(head)}" scope="rowgroup">Below the line, not ranked</th>'
    rows.append(f'<tbody class="line"{"" if table.below else " hidden"}><tr>{line}</tr></tbody>')
    rows += [_row("–", record, names, columns, why) for record, why in table.below]
    return "\n".join([
        f'<section class="protocol" data-key="{table.protocol.key}">',
        f"<h3>{text(table.protocol.title)}</h3>",
        _settings(table.protocol),
        f'<div class="scroll"><table class="ranking" aria-label="{text(table.protocol.title)}">',
        "<thead><tr>",
        *(f'<th scope="col" data-key="{key}" class="{kind}">{label}</th>' for key, kind, label in head),
        "</tr></thead>",
        *rows,
        "</table></div>",
        *_spreads(table, columns),
        "</section>",
    ])  # fmt: skip


def _columns(table: Table, board: Board) -> list[Column]:
    """Every eps > 0 of the table. Those that its Markdown page leaves out or that few models have are "rare"."""
    usual = shown_eps(table.records, board.reference)
    columns = []
    for place, eps in enumerate(measured_eps(board.records, board.reference), start=1):
        models = sum(record.at(eps) is not None for record in table.records)
        if eps == board.reference:
            kind = "eps at"
        else:
            kind = "eps" if eps in usual and models >= len(table.records) / 4 else "eps rare"
        if models:
            columns.append(Column(f"e{place}", kind, eps, text(eps_label(eps, board.records))))
    return columns


def _row(place: str, record: Record, names: Mapping[str, str], columns: list[Column], why: str = "") -> str:
    """A record in two rows: what is compared, and what can be unfolded."""
    method = record.model.trained.method if record.model.trained else ""
    below = f'<small class="why">{text(why)}</small>' if why else ""
    flags = ", ".join(
        dict.fromkeys(
            f'<span class="{flag.severity}">{text(flag.name if flag.severity == "note" else record.words(flag))}</span>'
            for flag in record.flags
        )
    )
    cells = [
        f'<td class="n">{place}</td>',
        f'<th scope="row"><details><summary>{text(names[record.id])}</summary></details>{below}</th>',
        f'<td class="minor">{text(method)}</td>',
        f'<td class="minor arch">{text(record.model.arch)}</td>',
        f'<td class="n">{percent(record.clean, record.n)}</td>',
        *(f'<td class="n {one.kind}">{_accuracy(record.at(one.eps))}</td>' for one in columns),
        f'<td class="n minor">{percent(record.auc, record.n)}</td>',
        f'<td class="n minor">{count(record.passes_an_image)}</td>',
        f'<td class="minor">{flags}</td>',
    ]
    more = "".join(f"<dt>{term}</dt><dd>{content}</dd>" for term, content in details(record).items() if content)
    unfolded = f'<tr class="more"><td colspan="{len(cells)}"><dl>{more}</dl></td></tr>'
    return f'<tbody class="record" id="r{record.id}"><tr>{"".join(cells)}</tr>{unfolded}</tbody>'


def _accuracy(point: CurvePoint | None) -> str:
    if point is None:
        return ""
    return f"{percent(point.accuracy, point.n)}<i>{interval(point.ci_low, point.ci_high, point.n)}</i>"


def _settings(protocol: Protocol) -> str:
    """The attacks with their settings."""
    attacks = []
    for name, settings in protocol.settings:
        attacks.append(f"<li>{text(f'{name}: {shown}' if (shown := listed(settings)) else name)}</li>")
    return f"<details><summary>protocol {protocol.key}</summary><ul>{''.join(attacks)}</ul></details>"


def _spreads(table: Table, columns: list[Column]) -> list[str]:
    """The means over the seeds of training, if several records differ by it alone."""
    found = series(table.ranked)
    if not found:
        return []
    sizes = [None, *(one.eps for one in columns)]
    head = ["models", "seeds", "clean", *(one.label for one in columns)]
    rows = []
    for one in sorted(found, key=lambda one: one.name):
        cells = [text(one.name), ", ".join(map(str, one.seeds))]
        cells += [spread(one.spread(eps), one.records[0].n) for eps in sizes]
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return [
        "<details><summary>mean ± standard deviation over the seeds of training</summary>",
        '<div class="scroll"><table class="spreads">',
        "<thead><tr>" + "".join(f'<th scope="col">{cell}</th>' for cell in head) + "</tr></thead>",
        "<tbody>",
        *rows,
        "</tbody></table></div></details>",
    ]
