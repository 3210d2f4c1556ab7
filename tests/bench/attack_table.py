"""Attacks beside each other, on nets of several methods: what each leaves standing, what it costs, what it alone found.

    python tests/bench/attack_table.py [-n 1000] [--threads 2] [--records boards/attacks] [--out FILE.md] NET@EPS...

Each attack runs by itself on the first n test images of the NET's dataset, a run folder, in Linf at the one EPS. Its
record is kept in the folder of records, so that an interrupted table goes on where it was; after each net FILE.md and
the .csv beside it are written anew, with the nets that are finished.

The reference is the envelope of all attacks: an image stands there if every attack left it standing. `optimality` is
that of AttackBench (Cina et al. 2025, arXiv:2404.19460), at one eps: of the images that any attack felled, the share
that this one felled.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from advbench.cli.console import Screen
from advbench.cli.evaluate import Flags, evaluate
from advbench.environment import environment
from advbench.errors import Interrupted
from advbench.files import write_atomic
from advbench.record import NOT_PROBED, load_record
from advbench.registry import entries
from advbench.version import __version__

ATTACKS: dict[str, tuple[str, dict[str, Any]]] = {
    "pgd": ("pgd", {}),
    "apgd-ce": ("apgd-ce", {}),
    "apgd-t": ("apgd-t", {}),
    "apgd-t, malt": ("apgd-t", {"targets": "malt"}),
    "multi-targeted": ("multi-targeted", {}),
    "fab-t": ("fab-t", {}),
    "square": ("square", {}),
    "odi-margin": ("odi-margin", {}),
    "pma": ("pma", {}),
    "quick": ("quick", {}),
    "autoattack": ("autoattack", {}),
}
WHOLE = ("quick", "autoattack")  # sets, whose flags are looked for
KEEPS = 0.2  # of the images: nets that keep fewer say little of an attack's cost
MOST_ABOVE, MOST_PASSES, MOST_ESCALATED = 0.2, 20.0, 0.25  # what `quick` is to reach: points, percent, share of nets
COLUMNS = (
    "net", "eps", "n", "attack", "clean", "robust", "envelope", "optimality", "alone", "passes", "seconds", "escalated",
    "flags", "record",
)  # fmt: skip
Bools = NDArray[np.bool_]
TITLE = f"""# Attacks beside each other

Written by `make attack-table`. Each attack runs alone, in Linf at one eps a net, on the same images of a net. A smaller
number is a stronger attack. The *envelope* is the worst case over all of them: an image falls if any attack felled it.

- *Passes* are forward and backward ones of an image, measured: images that fall need fewer, and rows that run idle
  beside the last images count. Looking for flags, on 64 images, does not.
- *Distance* is robust accuracy minus that of the envelope, in points. *Optimality* is AttackBench's (Cina et al. 2025,
  arXiv:2404.19460) at one eps: of the images that any attack felled, the share that this one felled.
- *Alone* are the images that an attack felled and no other did. A set and its members are not compared with each other,
  and a `quick` that went on to autoattack is not among the others.
- `apgd-t, malt` is apgd-t with `targets=malt`; all else is as its name says. Standard nets fall whole at the usual eps
  and are attacked at about a third of it.
- *Share of autoattack's passes* is summed over the nets that keep at least {100 * KEEPS:.0f} % under it.
"""


@dataclass(frozen=True)
class Found:
    """What one attack did to a net: `stands` (n,), passes an image, seconds, the flags that doubt its number, and
    whether it went on to autoattack."""

    stands: Bools
    passes: float
    seconds: float = 0.0
    doubts: Sequence[str] = ()
    escalated: bool = False
    record: str = ""


@dataclass(frozen=True)
class Net:
    """A net at one eps: `clean` (n,), which images it gets right, and what each attack found, by its name here."""

    name: str
    eps: str
    clean: Bools
    found: Mapping[str, Found]

    @property
    def envelope(self) -> Bools:
        """(n,): the images that all attacks left standing."""
        return np.logical_and.reduce([one.stands for one in self.found.values()])

    def robust(self, attack: str) -> float:
        """Percent of the images that stand."""
        return 100 * float(self.found[attack].stands.mean())

    def distance(self, attack: str) -> float:
        """Points above the envelope."""
        return self.robust(attack) - 100 * float(self.envelope.mean())

    def optimality(self, attack: str) -> float | None:
        """Percent of the images that any attack felled; None where none fell."""
        felled = int((self.clean & ~self.envelope).sum())
        own = int((self.clean & ~self.found[attack].stands).sum())
        return 100 * own / felled if felled else None

    def alone(self, attack: str) -> int:
        """The images that `attack` felled and no other did. Left out of the others are its members, sets that it is a
        member of, and those that went on to autoattack."""
        others = [
            name
            for name in self.found
            if name != attack and not related(name, attack) and not self.found[name].escalated
        ]
        rest = np.logical_and.reduce([self.clean, *(self.found[name].stands for name in others)])
        return int((rest & ~self.found[attack].stands).sum())


def related(one: str, other: str) -> bool:
    """Whether one of the two is a member of the other."""
    known = entries("attacks")
    members = [known[name].about.get("members", ()) if name in known else () for name in (one, other)]
    return one in members[1] or other in members[0]


def share(nets: Iterable[Net], attack: str) -> float | None:
    """The passes of `attack` in percent of autoattack's, summed over the nets that keep enough; None without any."""
    kept = [net.found for net in nets if net.robust("autoattack") >= 100 * KEEPS]
    whole = sum(found["autoattack"].passes for found in kept)
    return 100 * sum(found[attack].passes for found in kept) / whole if kept else None


def attacks_of(nets: Sequence[Net]) -> list[str]:
    """The attacks that all of `nets` were measured by, in the order of ATTACKS."""
    return [name for name in ATTACKS if all(name in net.found for net in nets)]


def summary(nets: Sequence[Net]) -> list[list[str]]:
    """A row an attack over all nets, under a head."""
    rows = [
        ["attack", "mean distance", "largest distance", "mean optimality %", "alone", "share of autoattack's passes %"]
    ]
    for name in attacks_of(nets):
        distances = [net.distance(name) for net in nets]
        reached = [found for net in nets if (found := net.optimality(name)) is not None]
        mean = f"{np.mean(reached):.1f}" if reached else ""
        alone = sum(net.alone(name) for net in nets)
        rows.append(
            [name, f"{np.mean(distances):.2f}", f"{max(distances):.1f}", mean, str(alone), percent(share(nets, name))]
        )
    return rows


def quick_lines(nets: Sequence[Net]) -> list[str]:
    """Whether `quick` reaches what it is to reach, in a sentence each."""
    above = {net.name: net.robust("quick") - net.robust("autoattack") for net in nets}
    worst = max(above, key=lambda name: above[name])
    calm = [net for net in nets if not net.found["quick"].escalated]
    cost = share(calm, "quick")
    counted = sum(net.robust("autoattack") >= 100 * KEEPS for net in calm)
    honest = [net for net in nets if not net.found["autoattack"].doubts]
    went_on = sum(net.found["quick"].escalated for net in honest)
    mean = np.mean(list(above.values()))
    return [
        f"quick minus autoattack: at most {above[worst]:+.1f} points ({worst}), {mean:+.2f} in the mean of {len(nets)} "
        f"nets. Goal: at most {MOST_ABOVE:+.1f}: {reached(above[worst] <= MOST_ABOVE + 1e-9)}.",
        f"quick's passes, summed over the {counted} nets that keep at least {100 * KEEPS:.0f} % and did not escalate: "
        f"{percent(cost)} % of autoattack's. Goal: at most {MOST_PASSES:.0f} %: "
        f"{reached(cost is not None and cost <= MOST_PASSES)}.",
        f"{len(nets) - len(calm)} of {len(nets)} nets escalated; of the {len(honest)} where no flag doubts AutoAttack, "
        f"{went_on}. Goal: at most one in four: {reached(went_on <= MOST_ESCALATED * len(honest))}.",
    ]


def reached(yes: bool) -> str:
    return "reached" if yes else "**missed**"


def percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def markdown(nets: Sequence[Net], about: str) -> str:
    """The page."""
    names = attacks_of(nets)

    def by_net(cell: Callable[[Net, str], str], **more: Callable[[Net], str]) -> str:
        rows = [
            [net.name, net.eps, *(cell(net, name) for name in names), *(last(net) for last in more.values())]
            for net in nets
        ]
        return table([["net", "eps", *names, *more], *rows])

    parts = [TITLE, about, "## Over all nets", table(summary(nets))]
    if "quick" in names:
        lines = "\n".join(f"- {line}" for line in quick_lines(nets))
        parts += ["## quick beside autoattack", lines, table(quick_rows(nets))]
    parts += ["## Robust accuracy, percent", "In brackets the distance from the envelope, where there is one."]
    parts += [by_net(accuracy, envelope=lambda net: f"{100 * net.envelope.mean():.1f}")]
    parts += ["## Passes an image", by_net(lambda net, name: f"{net.found[name].passes:,.0f}")]
    parts += ["## Images that it alone felled", by_net(lambda net, name: str(net.alone(name)))]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def accuracy(net: Net, attack: str) -> str:
    above = net.distance(attack)
    return f"{net.robust(attack):.1f}{f' (+{above:.1f})' if above > 0 else ''}"


def quick_rows(nets: Sequence[Net]) -> list[list[str]]:
    """A row a net: quick and autoattack, and whose flags doubt them."""
    rows = [["net", "eps", "autoattack %", "quick %", "points", "passes", "% of autoattack's", "escalated", "flags"]]
    for net in nets:
        quick, whole = net.found["quick"], net.found["autoattack"]
        doubts = [f"{name}: {', '.join(net.found[name].doubts)}" for name in WHOLE if net.found[name].doubts]
        rows.append(
            [
                net.name, net.eps, f"{net.robust('autoattack'):.1f}", f"{net.robust('quick'):.1f}",
                f"{net.robust('quick') - net.robust('autoattack'):+.1f}", f"{quick.passes:,.0f}",
                f"{100 * quick.passes / whole.passes:.1f}", "yes" if quick.escalated else "no", "; ".join(doubts),
            ]
        )  # fmt: skip
    return rows


def table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body))


def tidy(nets: Sequence[Net]) -> str:
    """The CSV: a row a net and attack, accuracies as fractions."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for net in nets:
        for name, one in net.found.items():
            optimality = net.optimality(name)
            writer.writerow(
                [
                    net.name, net.eps, len(net.clean), name, net.clean.mean(), one.stands.mean(), net.envelope.mean(),
                    "" if optimality is None else round(optimality / 100, 6), net.alone(name), round(one.passes, 2),
                    round(one.seconds, 1), int(one.escalated), " ".join(one.doubts), one.record,
                ]
            )  # fmt: skip
    return out.getvalue()


def measured(run: Path, eps: str, n: int, records: Path) -> Net:
    """The net of a run folder under every attack that is registered. What was measured before is read."""
    found, clean, title = {}, np.ones(0, dtype=bool), run.name
    for label, (name, settings) in ATTACKS.items():
        if name not in entries("attacks"):
            print(f"{name} is not registered: left out", file=sys.stderr)
            continue
        flags = Flags(
            models=(str(run),), attacks=(name,), settings=settings, eps=eps, n=n, device="cpu", norm="linf",
            probes="on" if label in WHOLE else "off", out=records, resume=True,
        )  # fmt: skip
        (record,) = evaluate(flags, screen=Screen(silent=True))
        record, fates = load_record(next(records.rglob(f"{record.id}.json")))
        assert record.passes_an_image is not None
        doubts = sorted({flag.name for flag in record.doubts(record.eps[0]) if flag.name != NOT_PROBED})
        escalated = any(flag.name == "escalated" for flag in record.flags)
        stands = fates.standing(0)
        found[label] = Found(stands, record.passes_an_image, record.seconds, doubts, escalated, record.id)
        clean, title = fates.clean, run.name.removesuffix(f"-{record.model.arch}")
        print(
            f"{run.name} at {eps}: {label} leaves {100 * stands.mean():.1f} %, {record.seconds:.0f} s",
            file=sys.stderr,
        )
    return Net(title, eps, clean, found)


def main() -> int:
    """Measure what is missing, and write the table after each net."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nets", nargs="+", metavar="NET@EPS")
    parser.add_argument("-n", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--records", type=Path, default=Path("boards/attacks"))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    here, nets = environment(), []
    threads = f"{given.threads} thread{'s' if given.threads > 1 else ''}"
    about = (
        f"The first {given.n:,} test images, {threads}; {here['device_name']}, Python {here['python']}, "
        f"torch {here['torch']}, advbench {__version__}; {date.today()}."
    )
    try:
        for spec in given.nets:
            run, _, eps = spec.rpartition("@")
            nets.append(measured(Path(run), eps, given.n, given.records))
            if given.out:
                write_atomic(given.out, markdown(nets, about))
                write_atomic(given.out.with_suffix(".csv"), tidy(nets))
    except Interrupted as stopped:
        print(f"{stopped}: the same command goes on", file=sys.stderr)
        return 3
    print(markdown(nets, about))
    return 0


if __name__ == "__main__":
    sys.exit(main())
