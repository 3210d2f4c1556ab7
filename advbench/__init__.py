"""Accuracy against eps: train, attack, evaluate and compare robust classifiers.

    import advbench

    result = advbench.evaluate(net, "cifar10", eps=[0, 4/255, 8/255])   # any nn.Module on [0, 1]
    print(result.curve_frame())                 # accuracy at each eps; result.frame() has a row for each image
    result.record.save("leaderboards", result.fates)

    found = advbench.attack(net, (x, y), eps=8/255)
    found.adversarials, found.found             # (n, C, H, W), and where they fool the net

    advbench.compare(result, "runs/a", fail_if="acc@8/255 < baseline - 1").verdict   # help(advbench.compare)
    advbench.leaderboard("leaderboards")        # a DataFrame; help(advbench.leaderboard)

The functions here import what they need when they are called; importing advbench loads no torch. What is wrong with an
argument is told by a UserError of one line.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advbench.errors import Interrupted, UserError
from advbench.public import checked
from advbench.version import __version__

if TYPE_CHECKING:
    import torch

    from advbench.analyses.base import Analysis
    from advbench.checkpoint import Loaded
    from advbench.compare.call import compare_models as compare
    from advbench.data.dataset import Dataset
    from advbench.defaults.progress import Show
    from advbench.eps import Eps
    from advbench.evaluator import Evaluation, Journal
    from advbench.leaderboard import build_frame as leaderboard
    from advbench.models.normalized import Written

__all__ = [
    "Interrupted",
    "UserError",
    "__version__",
    "analyze",
    "attack",
    "compare",
    "evaluate",
    "leaderboard",
    "list_entries",
    "load_data",
    "load_model",
    "train",
]
_CALLED = ("compare", "leaderboard")  # packages that can be called, loaded when they are first named


def __getattr__(name: str) -> Any:
    if name in _CALLED:
        return importlib.import_module(f"advbench.{name}")
    raise AttributeError(f"module 'advbench' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


@checked
def load_data(name: str, split: str = "test", *, progress: bool | Show | None = None) -> Dataset:
    """The images and labels of `digits`, `cifar10`, ..., `imagefolder:PATH` or `npz:PATH`. Raises UserError.

    `progress`: as in `evaluate`.
    """
    from advbench.data import load
    from advbench.defaults.progress import reporting

    with reporting(progress) as report:
        return load(name, split, progress=lambda done, total, what: report(what, done, total))


@checked
def load_model(
    spec: str | Path,
    *,
    arch: str | None = None,
    dataset: Dataset | str | None = None,
    norm: str | None = None,
    device: str | torch.device = "cpu",
    mean: Written = None,
    std: Written = None,
    abstain: str | None = None,
    trust_pickle: bool = False,
    trust_code: bool = False,
) -> Loaded:
    """A model by its specification: a run folder, a weight file, `robustbench:NAME`, ... Its network is `.net`.

    - `arch`: the architecture of a weight file that does not name it.
    - `dataset`: the model must fit it; it also chooses between models of one name, as `norm` does.
    - `mean`, `std`: normalisation put in front: a name (imagenet, cifar10, mnist, half), a number, or one a channel.
      `abstain`: "last" if the last of K + 1 logits rejects the input.
    - `trust_pickle`, `trust_code`: load a pickle that could run code; run code that only the run folder names.

    Raises UserError.
    """
    from advbench.checkpoint import load_model as load
    from advbench.defaults.target import pick_device

    return load(
        str(spec),
        arch=arch,
        dataset=dataset,
        norm=norm,
        device=pick_device(device),
        mean=mean,
        std=std,
        abstain=abstain,
        trust_pickle=trust_pickle,
        trust_code=trust_code,
    )


@checked
def list_entries(kind: str, filter: str | None = None) -> list[dict[str, Any]]:
    """The methods, attacks, models, datasets, analyses or flags: a dict for each, with at least `name` and `summary`.

    `filter`: only those whose name or summary contains this text. Raises UserError for another `kind`.
    """
    from advbench.defaults.listing import listing

    return listing(kind, filter)


@checked
def train(
    method: str = "act",
    *,
    dataset: str | None = None,
    arch: str | None = None,
    norm: str | None = None,
    eps: Eps | str | float | None = None,
    mean: Written = None,
    std: Written = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    init: str | Path | None = None,
    seed: int | None = None,
    name: str | None = None,
    settings: Mapping[str, Any] | None = None,
    preset: str | None = None,
    config: str | Path | None = None,
    device: str | torch.device = "auto",
    out: str | Path | None = None,
    resume: bool = False,
    force: bool = False,
    progress: bool | Show | None = None,
    trust_pickle: bool = False,
    trust_code: bool = False,
) -> Path:
    """Train a model and return its run folder, which `evaluate` and `load_model` take.

    - `arch`: a name of the zoo, `torchvision:NAME`, `timm:NAME` or `module:callable`. `mean`, `std`: normalisation in
      front of it, as in `load_model`. `init`: a weights file, or a run folder, from which it starts.
    - `settings`: fields of the recipe by their dotted names, such as {"optim.lr": 0.05}. Arguments that are not given
      get the defaults of `advbench train`. `preset`: the method's training as its authors released it, such as "paper".
      `name`: what tables call the model. `progress`: as in `evaluate`.
    - `trust_pickle`, `trust_code`: load a pickle that can run code; run code that only `config` names, or the run
      folder of a teacher.

    Raises UserError.
    """
    from advbench import consent
    from advbench.defaults.progress import reporting, watch_of
    from advbench.defaults.run_folders import choose_data, place_runs, recipe_fields
    from advbench.defaults.target import pick_device
    from advbench.eps import as_eps
    from advbench.recipe import Recipe
    from advbench.trainer import train as run

    if name is not None and not name.strip():
        raise UserError("name is what tables call the model: it is not empty")
    start = None if init is None else str(init)
    given = {"epochs": epochs, "batch_size": batch_size, "optim.lr": lr, "init": start, "seed": seed}
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
            eps=None if eps is None else str(as_eps(eps, norm or "l2")),
            preset=preset,
            config=None if config is None else Path(config),
            flags={**recipe_fields(mean=mean, std=std, **given), **(settings or {})},
        )
        (task,) = place_runs([recipe], None if out is None else Path(out), resume=resume, force=force)
        with reporting(progress) as report:
            watch = watch_of(report)
            return run(recipe, task.out, device=str(place), resume=resume, force=force, name=name, watch=watch)


@checked
def evaluate(
    model: str | Path | Loaded | Callable[..., Any],
    dataset: Any = None,
    *,
    attack: Any = "autoattack",
    eps: Eps | str | float | Sequence[Eps | str | float] | None = None,
    norm: str | None = None,
    n: int | None = None,
    subset: str = "first",
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    class_map: Mapping[Any, int] | None = None,
    layout: str | None = None,
    arch: str | None = None,
    mean: Written = None,
    std: Written = None,
    abstain: str | None = None,
    name: str | None = None,
    settings: Mapping[str, Any] | None = None,
    attack_budget: int | None = None,
    adversarials: str | Path | Sequence[str | Path] = (),
    seed: int = 0,
    device: str | torch.device = "auto",
    precision: str = "auto",
    engine: str = "own",
    curve: str = "fast",
    slots: int | None = None,
    processes: int | None = None,
    probes: bool = True,
    certify: str = "off",
    certify_seconds: float = 1.0,
    keep_points: bool = False,
    journal: Journal | str | Path | None = None,
    resume: bool = False,
    progress: bool | Show | None = None,
    trust_pickle: bool = False,
    trust_code: bool = False,
) -> Evaluation:
    """Accuracy of `model` on test images at each of `eps`, under the worst of the attacks.

    - `model`: a specification as in `load_model`; a network that takes images in [0, 1], (B, C, H, W) float32, and
      returns logits (B, K); or a function or predictor, which has no gradient.
    - `dataset`: a name, a Dataset, a pair (x, y) of tensors or arrays, a dataset of PyTorch or a DataLoader; None: the
      dataset of the model. `num_classes`, `class_names`, `class_map` and `layout` describe one's own data, as in
      `advbench.data.tensors.from_tensors`; without them the model says how many classes there are.
    - `attack`: one or a list of: a name, an attack of ours or of another library, a function (docs/how-to/attack.md).
      `settings`: fields of ours by name. `attack_budget`: forward and backward passes of all together on an image, at
      each eps; None: their own.
    - `adversarials`: files of adversarial images made elsewhere (docs/how-to/adversarials.md), which count where they
      fool the model.
    - `eps`: numbers or texts ("8/255"), one or several; None: 0 to 2 x the training eps, or 0 to 2 x the usual eps of
      the dataset.
    - `n`: how many images are used; None: 1,000 of a named dataset, all of a given one. `subset`: which ones, "first",
      "random:SEED" or a file of positions.
    - `arch`, `mean`, `std`, `abstain`: as in `load_model`. `name`: what tables call the model.
    - `precision`, `engine`, `curve`, `slots`, `processes`, `probes`, `certify`, `certify_seconds`, `keep_points`: as in
      `advbench.evaluator.Settings`.
    - `journal`: a file in which progress is kept, from which `resume` continues.
    - `progress`: True for a line on stderr, or a function of (stage, done, total or None), which may raise to stop.
      Of an evaluation it is told the share of the whole (0 to 1, never falling) and 1.
    - `trust_pickle`, `trust_code`: as in `load_model`.

    Raises UserError.
    """
    from advbench.defaults.choice import choose_eps
    from advbench.defaults.measure import measure
    from advbench.evaluator.adversarials import read_adversarials

    files = [adversarials] if isinstance(adversarials, str | Path) else adversarials
    return measure(
        model,
        dataset,
        adversarials=read_adversarials([Path(file) for file in files]),
        sizes=lambda target: choose_eps(eps, target.norm, target.train_eps, target.data.name)[0],
        curve=curve,
        keep_points=keep_points,
        norm=norm,
        n=n,
        subset=subset,
        classes={
            "num_classes": num_classes,
            "class_names": class_names,
            "class_map": class_map,
            "layout": layout,
        },
        arch=arch,
        mean=mean,
        std=std,
        abstain=abstain,
        name=name,
        attack=attack,
        settings=settings,
        attack_budget=attack_budget,
        seed=seed,
        device=device,
        precision=precision,
        engine=engine,
        slots=slots,
        processes=processes,
        probes=probes,
        certify=certify,
        certify_seconds=certify_seconds,
        journal=journal,
        resume=resume,
        progress=progress,
        trust_pickle=trust_pickle,
        trust_code=trust_code,
    )


@checked
def attack(
    model: str | Path | Loaded | Callable[..., Any],
    dataset: Any = None,
    *,
    attack: Any = "pgd",
    eps: Eps | str | float | None = None,
    norm: str | None = None,
    n: int | None = None,
    subset: str = "first",
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    class_map: Mapping[Any, int] | None = None,
    layout: str | None = None,
    arch: str | None = None,
    mean: Written = None,
    std: Written = None,
    abstain: str | None = None,
    name: str | None = None,
    settings: Mapping[str, Any] | None = None,
    attack_budget: int | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    precision: str = "auto",
    engine: str = "own",
    slots: int | None = None,
    processes: int | None = None,
    probes: bool = True,
    journal: Journal | str | Path | None = None,
    resume: bool = False,
    progress: bool | Show | None = None,
    trust_pickle: bool = False,
    trust_code: bool = False,
) -> Evaluation:
    """As `evaluate`, at one eps, and keep the images after the attack.

    `.adversarials` (n, C, H, W) are all of them, the strongest attempt where the attack failed; `.found` (n,) says
    where it did not. `eps` None: the training eps, or the usual eps of the dataset. Raises UserError.
    """
    from advbench.defaults.choice import choose_size
    from advbench.defaults.measure import measure

    return measure(
        model,
        dataset,
        sizes=lambda target: [choose_size(eps, target)],
        keep_points=True,
        norm=norm,
        n=n,
        subset=subset,
        classes={
            "num_classes": num_classes,
            "class_names": class_names,
            "class_map": class_map,
            "layout": layout,
        },
        arch=arch,
        mean=mean,
        std=std,
        abstain=abstain,
        name=name,
        attack=attack,
        settings=settings,
        attack_budget=attack_budget,
        seed=seed,
        device=device,
        precision=precision,
        engine=engine,
        slots=slots,
        processes=processes,
        probes=probes,
        journal=journal,
        resume=resume,
        progress=progress,
        trust_pickle=trust_pickle,
        trust_code=trust_code,
    )


@checked
def analyze(
    name: str,
    runs: str | Path | Sequence[str | Path] = (),
    *,
    dataset: str | None = None,
    norm: str | None = None,
    eps: Eps | str | float | Sequence[Eps | str | float] | None = None,
    n: int | None = None,
    seed: int | None = None,
    precision: str | None = None,
    settings: Mapping[str, Any] | None = None,
    device: str | torch.device = "auto",
    progress: bool | Show | None = None,
    trust_pickle: bool = False,
    trust_code: bool = False,
) -> Analysis:
    """The analysis `name` of run folders: `.tables` (DataFrames by name), `.figures` (matplotlib), `.notes`.

    `settings` are its own parameters. The other arguments are as in `evaluate`; an analysis takes only those that it
    has (`advbench.list_entries("analyses")`). Raises UserError.
    """
    from advbench import consent
    from advbench.defaults.analysis import run_analysis
    from advbench.defaults.choice import check_count
    from advbench.defaults.progress import reporting
    from advbench.defaults.target import pick_device
    from advbench.eps import as_eps_list

    check_count(n)
    sizes = None if eps is None else ",".join(map(str, as_eps_list(eps, norm or "l2")))
    flags = {"dataset": dataset, "norm": norm, "eps": sizes, "n": n, "seed": seed, "precision": precision}
    with consent.also(pickle=trust_pickle, code=trust_code).given(), reporting(progress) as report:
        return run_analysis(
            name,
            [runs] if isinstance(runs, str | Path) else list(runs),
            device=pick_device(device),
            flags={key: value for key, value in flags.items() if value is not None},
            settings=settings or {},
            progress=report,
        )
