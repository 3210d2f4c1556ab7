"""Accuracy against eps: train, attack, evaluate and compare robust classifiers.

    import advbench

    result = advbench.evaluate(net, "cifar10", eps=["0", "4/255", "8/255"])   # any nn.Module on [0, 1]
    print(result.record.clean, [point.accuracy for point in result.record.curve])
    result.record.save("leaderboards", result.fates)

The functions here import what they need when they are called; importing advbench loads no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advbench.errors import Interrupted, UserError
from advbench.version import __version__

if TYPE_CHECKING:
    from torch import nn

    from advbench.checkpoint import Loaded
    from advbench.data.dataset import Dataset
    from advbench.eps import Eps
    from advbench.evaluator import Evaluation

__all__ = ["Interrupted", "UserError", "__version__", "attack", "evaluate", "load_data", "load_model", "train"]


def load_data(name: str, split: str = "test") -> Dataset:
    """The images and labels of `digits`, `cifar10`, ..., `imagefolder:PATH` or `npz:PATH`. Raises UserError."""
    from advbench.data import load

    return load(name, split)


def load_model(spec: str, **how: Any) -> Loaded:
    """A model by its specification: a run folder, a weight file, `robustbench:NAME`, ... Its network is `.net`.

    `how` are arguments of `advbench.checkpoint.load_model`: arch, dataset, norm, device, trust_pickle, trust_code.
    Raises UserError.
    """
    from advbench.checkpoint import load_model as load

    return load(spec, **how)


def train(
    method: str = "act",
    *,
    dataset: str | None = None,
    arch: str | None = None,
    norm: str | None = None,
    eps: str | float | None = None,
    epochs: int | None = None,
    seed: int | None = None,
    settings: Mapping[str, Any] | None = None,
    config: str | Path | None = None,
    device: str = "auto",
    out: str | Path | None = None,
    resume: bool = False,
    force: bool = False,
    trust_pickle: bool = False,
    trust_code: bool = False,
) -> Path:
    """Train a model and return its run folder, which `evaluate` and `load_model` take.

    `settings` are fields of the recipe by their dotted names, such as {"optim.lr": 0.05}. Arguments that are not given
    get the defaults of `advbench train`. A pickle that can run code is loaded only with `trust_pickle`; code that only
    `config` names, or the run folder of a teacher, runs only with `trust_code`. Raises UserError.
    """
    from advbench import consent
    from advbench.defaults.run_folders import choose_data, place_runs
    from advbench.defaults.target import pick_device
    from advbench.recipe import Recipe
    from advbench.trainer import train as run

    named = (method, dataset, arch, *(settings or {}).values())
    with consent.also(pickle=trust_pickle, code=trust_code).given(), consent.reading(config, *named).given():
        place = pick_device(device)
        dataset, arch, _ = (
            choose_data(dataset, arch, cuda=place.type == "cuda") if config is None else (dataset, arch, "")
        )
        recipe = Recipe.resolve(
            method=method,
            dataset=dataset,
            arch=arch,
            norm=norm,
            eps=None if eps is None else str(eps),
            config=None if config is None else Path(config),
            flags={"epochs": epochs, "seed": seed, **(settings or {})},
        )
        (task,) = place_runs([recipe], None if out is None else Path(out), resume=resume, force=force)
        return run(recipe, task.out, device=str(place), resume=resume, force=force)


def evaluate(
    model: str | nn.Module | Loaded,
    dataset: Any = None,
    *,
    attack: Any = "autoattack",
    eps: str | Sequence[Eps | str | float] | None = None,
    norm: str | None = None,
    n: int | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    device: str = "auto",
    **how: Any,
) -> Evaluation:
    """Accuracy of `model` on test images at each of `eps`, under the worst of the attacks.

    - `model`: a specification as in `load_model`, or a network that takes images in [0, 1], (B, C, H, W) float32, and
      returns logits (B, K).
    - `dataset`: a name, a Dataset, a pair (x, y) of tensors or arrays, a dataset of PyTorch or a DataLoader; None: the
      dataset of the model. Of one's own data, `how` may have num_classes, class_names, class_map and layout (see
      `advbench.data.tensors.from_tensors`); without them the model says how many classes there are.
    - `attack`: one or a list of: a name, an attack of ours or of another library, a function (docs/own-attacks.md).
    - `dataset`: a name, a Dataset, or a pair (x, y) of tensors or arrays; None: the dataset of the model.
    - `eps`: None: 0 to 2 x the training eps, or 0 to 2 x the usual eps of the dataset.
    - `n`: how many of the first images are used; None: 1,000 of a named dataset, all of a given one.
    - `how`: further fields of `advbench.evaluator.Settings` (precision, curve, engine, keep_points, ...), and `journal`
      and `resume`.

    Raises UserError.
    """
    from advbench.checkpoint import Loaded
    from advbench.data.dataset import Dataset
    from advbench.data.tensors import CLASSES, from_object
    from advbench.defaults.choice import check_count, choose_eps, choose_rows
    from advbench.defaults.target import Target, load_target, pick_device
    from advbench.evaluator import Settings, bare
    from advbench.evaluator import evaluate as measure

    place = pick_device(device)
    check_count(n)
    told = {word: how.pop(word) for word in CLASSES if word in how}
    if told and (dataset is None or isinstance(dataset, str)):
        raise UserError(f"a named dataset says what its classes are: leave out {', '.join(told)}")
    given = dataset if dataset is None or isinstance(dataset, str) else from_object(dataset, n=n, **told)
    if isinstance(model, str):
        name = given.name if isinstance(given, Dataset) else given
        cache = {given.name: given} if isinstance(given, Dataset) else {}
        target = load_target(model, dataset=name, arch=None, norm=norm, device=place, cache=cache)
    elif given is None:
        raise UserError("which images? name a dataset, or give a pair (x, y)")
    else:
        data = given if isinstance(given, Dataset) else load_data(given)
        loaded = model if isinstance(model, Loaded) else bare(model, data)
        target = Target.of(loaded, data, norm=norm)
    if eps is None or isinstance(eps, str):
        eps, _ = choose_eps(eps, target.norm, target.train_eps, target.data.name)
    count = len(target.data) if n is None and isinstance(given, Dataset) else n
    rows, indices, _ = choose_rows(target.data, count, "first")
    journal, resume = how.pop("journal", None), how.pop("resume", False)
    chosen = Settings(
        attack=attack,
        attack_settings=settings or {},
        eps=eps,
        norm=target.norm,
        seed=seed,
        device=place,
        indices=None if isinstance(given, Dataset) else indices,
        **how,
    )
    return measure(target.loaded, target.data.subset(rows), chosen, journal=journal, resume=resume)


def attack(
    model: str | nn.Module | Loaded,
    dataset: Any = None,
    *,
    eps: str | float,
    attack: Any = "pgd",
    n: int | None = None,
    **how: Any,
) -> Evaluation:
    """As `evaluate`, at one eps, and keep the adversarial examples: `.points` maps a row to its image (C, H, W)."""
    return evaluate(model, dataset, attack=attack, eps=[eps], n=n, keep_points=True, **how)
