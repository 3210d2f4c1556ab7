"""The set quick beside AutoAttack: what it leaves standing, at how many passes, and on which models it goes on.

    python tests/bench/quick.py RUN... [--out FOLDER] [-n N] [--eps SIZE] [--device cpu]

Each run folder is measured by both at eps 0 and at SIZE, by default the one at which models of its dataset are ranked.
The records are kept in FOLDER, and a second call goes on where the first was stopped. The table is FOLDER/quick.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from advbench.checkpoint import read_card
from advbench.cli import run
from advbench.leaderboard.protocol import usual_eps
from advbench.record import ESCALATED, Record, load_records

SETS = ("quick", "autoattack")
HEAD = (
    "model",
    "n",
    "clean",
    "quick",
    "autoattack",
    "points above",
    "passes of quick",
    "of autoattack",
    "share",
    "went on",
)


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("demo/quick"))
    parser.add_argument("-n", type=int, default=1000)
    parser.add_argument("--eps")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    for folder in given.runs:
        eps = given.eps or usual_eps(read_card(folder).dataset, "linf")
        for name in SETS:
            words = ["--attack", name, "--eps", f"0,{eps}", "-n", str(given.n), "--device", given.device]
            if run(["evaluate", "--model", str(folder), *words, "--leaderboard", str(given.out), "--resume"]):
                raise SystemExit(f"{folder} was not measured")
            table(given.out)


def table(folder: Path) -> None:
    """Write the table of all models in `folder` that both sets measured on the same images."""
    found: dict[tuple[str, ...], dict[str, Record]] = {}
    for record in load_records(folder)[0]:
        key = (record.model.weights_sha256, record.dataset.images_sha256, record.norm, str(record.eps))
        found.setdefault(key, {})[record.attack_name.partition("+")[0]] = record
    rows, spent = [HEAD, tuple(":--" if name in ("model", "went on") else "--:" for name in HEAD)], [0.0, 0.0]
    for pair in found.values():
        if pair.keys() != set(SETS):
            continue
        quick, whole = (pair[name] for name in SETS)
        why = next((flag.detail.partition(": ")[2] for flag in quick.flags if flag.name == ESCALATED), "")
        tops = [100 * one.curve[-1].accuracy for one in (quick, whole)]
        passes = [one.passes_an_image or 0.0 for one in (quick, whole)]
        if tops[1] >= 20 and not why:
            spent = [before + now for before, now in zip(spent, passes, strict=True)]
        rows.append((
            Path(quick.model.spec).name, f"{quick.n:,}", f"{100 * quick.clean:.1f}", f"{tops[0]:.1f}", f"{tops[1]:.1f}",
            f"{tops[0] - tops[1]:+.1f}", f"{passes[0]:,.0f}", f"{passes[1]:,.0f}", f"{passes[0] / passes[1]:.1%}", why,
        ))  # fmt: skip
    text = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    if spent[1]:
        text += (
            f"\n\nPasses over the models that keep 20 % and did not go on: {spent[0] / spent[1]:.1%} of AutoAttack's."
        )
    (folder / "quick.md").write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
