"""The chain behind a number: record, weights, recipe, images, attacks, command and versions, each checked."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from advbench.errors import Untrusted, UserError
from advbench.recipe import saved_sha256
from advbench.record import Record, load_record
from advbench.version import __version__

State = Literal["verified", "differs", "missing", "not checked"]


@dataclass(frozen=True)
class Link:
    """One link of the chain: what the record says, and whether that is still true."""

    name: str
    says: str
    state: State
    detail: str = ""


def explain(
    path: Path,
    *,
    weights: Callable[[Record], str] | None = None,
    images: Callable[[Record], str] | None = None,
) -> list[Link]:
    """The chain behind the record file `path`, each link checked as far as it can be.

    `weights` and `images` compute the sha256 of the model's weights and of the images anew, because this module loads
    no torch. They raise UserError where those are missing; without the functions these links are not checked. Untrusted
    is passed on. The chain of a damaged record is that record alone.
    """
    try:
        record, _ = load_record(path)
    except UserError as error:
        return [Link("record", str(path), "differs", str(error))]
    trained, environment = record.model.trained, record.environment
    chain = [
        Link("record", f"{record.id}, {path}", "verified", "id, numbers and seal follow from each sample's fate"),
        _hashed("weights", record.model.spec, record.model.weights_sha256, record, weights),
    ]
    if trained is not None:
        chain.append(_recipe(Path(whereabouts(path, record)), trained.method, trained.recipe_sha256))
    of = f"{record.dataset.name}, {record.dataset.split}, {record.n} images"
    chain.append(_hashed("images", of, record.dataset.images_sha256, record, images))
    attacks = f"{record.attack_name}, {record.engine.name} {record.engine.version}, seed {record.seed}"
    chain.append(Link("attacks", attacks, "verified", f"question {record.question[:16]} is the hash of all of this"))
    command = shlex.join(environment.command) or "not recorded"
    chain.append(Link("command", command, "not checked", f"{environment.date}; repeat with evaluate --again"))
    return [*chain, *_versions(record)]


def whereabouts(path: Path, record: Record) -> str:
    """The spec of the record's model, or its run folder where that was moved together with the record file `path`."""
    spec, folder = record.model.spec, path.parent.parent.parent.parent
    is_run = path.parent.parent.parent.name == "records" and (folder / "run.json").is_file()
    return str(folder) if is_run and record.model.trained is not None and not Path(spec).exists() else spec


def _hashed(name: str, says: str, recorded: str, record: Record, compute: Callable[[Record], str] | None) -> Link:
    says = f"{says}, sha256 {recorded[:16]}"
    if compute is None:
        return Link(name, says, "not checked")
    try:
        found = compute(record)
    except Untrusted:
        raise
    except UserError as error:
        return Link(name, says, "missing", str(error))
    if found == recorded:
        return Link(name, says, "verified")
    return Link(name, says, "differs", f"the sha256 is {found[:16]} now")


def _recipe(folder: Path, method: str, recorded: str | None) -> Link:
    file = folder / "recipe.toml"
    says = f"{method}, {file}" + (f", sha256 {recorded[:16]}" if recorded else "")
    if not file.is_file():
        return Link("recipe", says, "missing", f"there is no {file}")
    if recorded is None:
        return Link("recipe", says, "not checked", "the record holds no hash of it")
    try:
        found = saved_sha256(file)
    except UserError as error:
        return Link("recipe", says, "differs", str(error))
    if found == recorded:
        return Link("recipe", says, "verified")
    return Link("recipe", says, "differs", f"the sha256 is {found[:16]} now")


def _versions(record: Record) -> list[Link]:
    """A link for each package whose version is in the record."""
    recorded = {"advbench": record.environment.advbench}
    extra = record.environment.__pydantic_extra__
    recorded |= {name: value for name, value in extra.items() if name in ("torch", "numpy") and isinstance(value, str)}
    links = []
    for name, then in recorded.items():
        now = __version__ if name == "advbench" else _installed(name)
        if now == then:
            links.append(Link("version", f"{name} {then}", "verified"))
        else:
            state: State = "differs" if now else "missing"
            links.append(Link("version", f"{name} {then}", state, f"here is {now or 'none'}"))
    return links


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
