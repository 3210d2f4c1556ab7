"""Records with chosen accuracies, and the tables of a page as dictionaries."""

from __future__ import annotations

import hashlib
import re
from typing import Any, NamedTuple

import numpy as np

from advbench.eps import parse_eps_list
from advbench.record import AttackRef, DatasetRef, Engine, Environment, Fates, ModelRef, Record, Trained


def record_of(fates: Fates, eps: str = "0,4/255,8/255", **changes: Any) -> Record:
    """A record of these fates: of cifar10, by pgd. `changes`: its parts, or its spec, name, trained, date, device."""
    spec, name = changes.pop("spec", "runs/act"), changes.pop("name", None)
    trained = changes.pop("trained", Trained(method="act", norm="linf", eps=8 / 255, eps_text="8/255", seed=3))
    date, device = changes.pop("date", "2026-08-01T12:00:00+00:00"), changes.pop("device", "cpu")
    weights = hashlib.sha256(spec.encode("utf-8", "surrogatepass")).hexdigest()
    command = ("advbench", "evaluate")
    parts: dict[str, Any] = {
        "model": ModelRef(name=name, spec=spec, arch="small_cnn", params=1000, weights_sha256=weights, trained=trained),
        "dataset": DatasetRef(name="cifar10", split="test", indices=f"first:{len(fates)}", images_sha256="b" * 64),
        "norm": "linf",
        "eps": parse_eps_list(eps, changes.get("norm", "linf")),
        "attack": [AttackRef(name="pgd", version="1")],
        "engine": Engine(name="advbench", version="1", slots=64, precision="fp32"),
        "seed": 0,
        "environment": Environment(advbench="0.1.0", date=date, command=command, device=device),
    }
    return Record.of(fates, **{**parts, **changes})


def made(standing: list[float], n: int = 1000, eps: str = "0,4/255,8/255", **changes: Any) -> tuple[Record, Fates]:
    """A record in which `standing[i]` percent of `n` samples stand at the i-th eps."""
    fates = fates_of(fallen([round(share * n / 100) for share in standing], n))
    return record_of(fates, eps, **changes), fates


def fallen(counts: list[int], n: int = 1000) -> np.ndarray:
    """Samples sorted by strength: `counts[i]` of `n` stand at the i-th eps."""
    fell = np.full(n, -1)
    for index in reversed(range(len(counts))):
        fell[counts[index] :] = index
    return fell


def fates_of(fell: Any, sizes: Any = None) -> Fates:
    """Fates of samples that the first attack felled, but for those that fall at once."""
    fell = np.asarray(fell)
    return Fates(fell, np.where(fell > 0, 0, -1), sizes)


def images(indices: str | tuple[int, ...], *, name: str = "cifar10") -> DatasetRef:
    """Test images, with a hash that follows from their positions."""
    digest = hashlib.sha256(f"{name} {indices}".encode()).hexdigest()
    return DatasetRef(name=name, split="test", indices=indices, images_sha256=digest)


def autoattack(**settings: Any) -> list[AttackRef]:
    """The standard set, with changed settings."""
    usual: dict[str, dict[str, Any]] = {
        "apgd-ce": {"steps": 100, "n_targets": 0},
        "apgd-t": {"steps": 100, "n_targets": 9},
        "fab-t": {"steps": 100, "n_targets": 9},
        "square": {"n_queries": 5000},
    }
    return [
        AttackRef(
            name=name,
            version="1",
            settings={**own, **{key: settings[key] for key in own if key in settings}, "set": "autoattack"},
        )
        for name, own in usual.items()
    ]


class Section(NamedTuple):
    """A table of a page: the last heading above it, whether it is below the line, and its rows by column."""

    heading: str
    below: bool
    rows: list[dict[str, str]]


def sections(page: str) -> list[Section]:
    """The tables of a Markdown page, in order."""
    found: list[Section] = []
    heading, below, header = "", False, None
    for line in page.splitlines():
        if line.startswith("## "):
            heading, below = line[3:], False
        below = below or line.startswith("Below the line, not ranked")
        if not line.startswith("|"):
            header = None
        elif header is None:
            header = [cell.strip("* ") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            found.append(Section(heading, below, []))
        elif not line.startswith("|:") and not line.startswith("|-"):
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            found[-1].rows.append(dict(zip(header, cells, strict=True)))
    return found


def order(page: str) -> list[tuple[str, list[str]]]:
    """The heading of each ranking of a page, in order, and the models that are ranked there, best first."""
    return [
        (part.heading, [row["model"] for row in part.rows])
        for part in sections(page)
        if not part.below and part.rows[0].get("#")
    ]


def unranked(page: str) -> dict[str, str]:
    """Why each model below the line is there."""
    return {row["model"]: row["not ranked because"] for part in sections(page) if part.below for row in part.rows
            if row.get("#")}  # fmt: skip
