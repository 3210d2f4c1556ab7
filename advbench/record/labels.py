"""Short names for the models of several records, where specs are long and much alike."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence

from advbench.escape import visible
from advbench.record.record import Record


def labels(records: Sequence[Record]) -> list[str]:
    """A label for the model of each record, in their order: on one line, inert, and no two alike.

    It is the name that the model was given; else method and architecture; else the spec, without the folders that all
    such specs have in common. Those that are alike get what tells them apart: the eps of the training, its seed, the
    differing part of the spec, the first digits of the weights' hash, or of the record's id.
    """
    unknown = [record.model.spec for record in records if not _known(record)]
    first = len(_common([spec.split("/") for spec in unknown])) if len(unknown) > 1 else 0
    found = [_known(record) or "/".join(record.model.spec.split("/")[first:]) for record in records]
    found = _told_apart(records, found, _FACTS)
    counts = Counter(found)
    return [
        f"{label}, {record.id}" if counts[label] > 1 else label for label, record in zip(found, records, strict=True)
    ]


Fact = Callable[[Sequence[Record]], list[str]]
"""What is said of each of several records that are alike so far; empty where there is nothing to say."""


def _told_apart(records: Sequence[Record], names: Sequence[str], facts: Sequence[Fact]) -> list[str]:
    """`names` with as many `facts` behind them as it takes to make no two alike."""
    names = [visible(name) for name in names]
    if not facts or len(set(names)) == len(names):
        return names
    groups: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        groups.setdefault(name, []).append(place)
    found = list(names)
    for name, places in groups.items():
        if len(places) == 1:
            continue
        group = [records[place] for place in places]
        said = facts[0](group)
        if len(set(said)) == 1:
            said = [""] * len(group)
        longer = [f"{name}, {text}" if text else name for text in said]
        for place, label in zip(places, _told_apart(group, longer, facts[1:]), strict=True):
            found[place] = label
    return found


def _known(record: Record) -> str:
    """The given name, or method and architecture; empty where neither is known."""
    trained = record.model.trained
    return record.model.name or (f"{trained.method} {record.model.arch}" if trained else "")


def _size(records: Sequence[Record]) -> list[str]:
    return [f"eps {t.eps_text}" if (t := record.model.trained) and t.eps_text else "" for record in records]


def _seed(records: Sequence[Record]) -> list[str]:
    return [f"seed {t.seed}" if (t := record.model.trained) and t.seed is not None else "" for record in records]


def _place(records: Sequence[Record]) -> list[str]:
    """The end of each spec from the folder on that no other one shares, without the words common to all of them."""
    specs = [record.model.spec for record in records]
    words = [re.split(r"([-_/:]+)", _end(spec, set(specs) - {spec})) for spec in specs]
    start = len(_common(words))
    rest = [several[start:] for several in words]
    end = len(_common([several[::-1] for several in rest]))
    return ["".join(several[: len(several) - end]).strip("-_/:") for several in rest]


def _end(path: str, others: Collection[str]) -> str:
    """The shortest end of `path`, in whole parts, that is the end of none of `others`."""
    parts = path.split("/")
    ends = ["/".join(parts[-count:]) for count in range(1, len(parts) + 1)]
    return next((end for end in ends if not any(f"/{other}".endswith(f"/{end}") for other in others)), path)


def _weights(records: Sequence[Record]) -> list[str]:
    return [record.model.weights_sha256[:8] for record in records]


def _record(records: Sequence[Record]) -> list[str]:
    return [f"record {record.id[:8]}" for record in records]


_FACTS: tuple[Fact, ...] = (_size, _seed, _place, _weights, _record)


def _common(several: Sequence[Sequence[str]]) -> list[str]:
    """The parts with which all of `several` begin; never all parts of the shortest, so that something is left."""
    found = []
    for parts in zip(*(one[:-1] for one in several), strict=False):
        if len(set(parts)) > 1:
            break
        found.append(parts[0])
    return found
