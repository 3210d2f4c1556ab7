"""Running an analysis by name, with its settings as values or as texts."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from advbench.errors import UserError, shortened, unknown
from advbench.registry import entries, find

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from advbench.analyses.base import Analysis, Progress

SUPPLIED = {"runs", "device", "progress"}
FLAGS = {"dataset", "norm", "eps", "n", "seed", "precision"}


def run_analysis(
    name: str | None,
    runs: Sequence[str | Path],
    *,
    device: torch.device,
    flags: Mapping[str, Any],
    settings: Mapping[str, Any],
    written: Mapping[str, str] | None = None,
    progress: Progress,
) -> Analysis:
    """The result of the analysis `name` on run folders.

    `flags`: those of FLAGS that were given; `settings`: its other parameters, and `written` their texts (see `fitted`).
    Raises UserError for an unknown name, flag or setting, a folder that is no run, and what the analysis refuses.
    """
    entry = find_analysis(name)
    from advbench.checkpoint import read_card
    from advbench.engine.kernels import exact_kernels

    for run in runs:
        read_card(Path(run))
    maker = entry.load()
    known = inspect.signature(maker).parameters
    for flag in flags:
        if flag not in known:
            raise UserError(
                f"the analysis {name} takes no {flag}: choose from {', '.join(sorted(FLAGS & known.keys()))}"
            )
    supplied = {key: value for key, value in {"device": device, "progress": progress}.items() if key in known}
    given = {**flags, **fitted(maker, settings, written or {}, apart=SUPPLIED | FLAGS)}
    with exact_kernels(device):  # no TF32 on CUDA
        found: Analysis = entry.create(runs=list(map(Path, runs)), **supplied, **given)
    return found


def find_analysis(name: str | None) -> Any:
    """The entry of the analysis `name`. Raises UserError."""
    if name is None:
        raise UserError(
            f"which analysis? choose from {', '.join(entries('analyses')) or 'none: there are no analyses'}"
        )
    if Path(name).is_dir():
        raise UserError(f"which analysis? name it before {name}: choose from {', '.join(entries('analyses'))}")
    return find("analyses", name)


def fitted(
    maker: Callable[..., Any], given: Mapping[str, Any], written: Mapping[str, str], *, apart: Collection[str] = ()
) -> dict[str, Any]:
    """The values `given`, converted to the annotated types of the parameters of `maker`; names in `apart` are none.

    Where a value does not fit, its text in `written`, if any, may. Raises UserError for an unknown parameter or a value
    of the wrong type.
    """
    from advbench.recipe.fields import converted

    hints = get_type_hints(maker, include_extras=True)
    known = [name for name in inspect.signature(maker).parameters if name not in apart]
    found = {}
    for name, value in given.items():
        if not known:
            raise UserError(f"unknown setting {name!r}: there are none")
        if name not in known:
            raise unknown("setting", name, known)
        kind = hints.get(name, Any)
        try:
            found[name] = converted(kind, value)
        except ValueError as reason:
            try:
                if name not in written:
                    raise
                found[name] = converted(kind, written[name])
            except ValueError as error:
                text = written.get(name, shortened(value))
                raise UserError(f"--set {name}={text}: {error}") from reason
    return found
