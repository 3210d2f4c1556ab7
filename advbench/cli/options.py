"""The flags that several commands share, as annotations."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from advbench.cli import complete
from advbench.cli.help import DATA, MAIN, MEASURE, OUTPUT, RUNNING
from advbench.consent import Consent
from advbench.errors import UserError, reading, unknown

_FIELDS = "advbench.set"  # the key of a context's table [set]


def _settings(context: typer.Context, given: list[str] | None) -> list[str]:
    """The table [set] of --config, and behind it what the command line sets, which wins field by field."""
    return [*context.meta.get(_FIELDS, []), *(given or [])]


def _read_flags(context: typer.Context, path: Path | None) -> Path | None:
    """Make the values of a TOML file the defaults of the command's flags; its table [set] becomes --set."""
    if path is None:
        return None
    import tomllib

    with reading(f"--config {path}"):
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    fields = given.pop("set", {})
    if not isinstance(fields, dict):
        raise UserError(f"--config {path}: [set] must be a table of settings")
    names = {name: option for option in context.command.params for name in (option.name or "", option.opts[0])}
    names = {name.lstrip("-"): option for name, option in names.items() if option.name not in ("config", "settings")}
    defaults: dict[str, object] = {}
    for key, value in given.items():
        if key not in names:
            raise unknown(f"flag in {path}", key, {option.opts[0].lstrip("-") for option in names.values()})
        option = names[key]
        if option.name in ("trust_pickle", "trust_code"):
            raise UserError(f"--config {path}: {key} is for you to say, on the command line")
        if isinstance(value, bool) and not getattr(option, "is_flag", False):
            raise UserError(f"--config {path}: {key} is {str(value).lower()}: write its value as the flag takes it")
        several = getattr(option, "multiple", False) or option.nargs == -1
        if isinstance(value, list):
            words = [str(one) for one in value]
            defaults[str(option.name)] = words if several else ",".join(words)
        else:
            defaults[str(option.name)] = [value] if several else value
    context.meta[_FIELDS] = [f"{name}={value}" for name, value in fields.items()]
    context.default_map = {**(context.default_map or {}), **defaults}
    return path


# One letter, one meaning, whatever the command. (-n has no long form.)
SHORT = {"-m": "--model", "-a": "--attack", "-d": "--dataset", "-e": "--eps", "-s": "--set", "-o": "--out"}


def in_full(argv: Sequence[str]) -> tuple[str, ...]:
    """A command line with the long forms of its flags, as records and messages show it."""
    words: list[str] = []
    for word in argv:
        long = SHORT.get(word[:2])
        words += [word] if long is None else [long, word[2:]] if word[2:] else [long]
    return tuple(words)


def was_given(context: typer.Context, parameter: str) -> bool:
    """Whether the flag stands on the command line, not only in --config."""
    source = context.get_parameter_source(parameter)
    return source is not None and source.name == "COMMANDLINE"


def consent(context: typer.Context) -> Consent:
    """What the command line consents to: its flags --trust-*, and the code that it names itself, not in --config."""
    own = {**context.params, "settings": (context.params.get("settings") or [])[len(context.meta.get(_FIELDS, [])) :]}
    given = [value for name, value in own.items() if was_given(context, name)]
    words = [word for value in given for word in (value if isinstance(value, list | tuple) else [value])]
    return Consent(
        pickle=context.params["trust_pickle"],
        code=context.params["trust_code"],
        named=frozenset(part.strip() for word in words for part in re.split("[,=]", str(word)) if ":" in part),
        file=None if context.params["config"] is None else str(context.params["config"]),
    )


LARGEST_SEED = 2**62 - 1
STATISTICS = ("imagenet", "cifar10", "cifar100", "svhn", "digits", "mnist", "fashion-mnist", "half")  # names for --mean
Model = Annotated[
    str | None,
    typer.Option(
        "--model", "-m",
        metavar="SPEC",
        help="run folder, weights file, robustbench:NAME, module:NAME, ... [default: the newest run]",
        rich_help_panel=MAIN, autocompletion=complete.models,
    ),
]  # fmt: skip


def out(where: str) -> Any:
    """The flag --out, whose default is `where`."""
    return typer.Option(
        "--out", "-o", metavar="DIR", help=f"folder to write to [default: {where}]", rich_help_panel=OUTPUT
    )


def dataset(text: str) -> Any:
    """The flag --dataset, which means `text`."""
    return typer.Option(
        "--dataset", "-d", metavar="NAME", help=text, rich_help_panel=MAIN, autocompletion=complete.datasets
    )


def norm(text: str, names: complete.Completer = complete.norms) -> Any:
    """The flag --norm, which means `text` and takes one of `names`."""
    return typer.Option("--norm", metavar="NAME", help=text, rich_help_panel=MAIN, autocompletion=names)


def eps(metavar: str, text: str) -> Any:
    """The flag --eps, which means `text`."""
    return typer.Option("--eps", "-e", metavar=metavar, help=text, rich_help_panel=MAIN)


def attack(text: str) -> Any:
    """The flag --attack, which means `text`."""
    return typer.Option(
        "--attack", "-a", metavar="NAME", help=text, rich_help_panel=MAIN, autocompletion=complete.attacks
    )


Dataset = Annotated[
    str | None,
    dataset("digits, cifar10, npz:FILE, imagefolder:DIR, module:callable, ... [default: that of the model]"),
]
Norm = Annotated[str | None, norm("linf, l2, l1, l0 or fourier-linf [default: that of the training, else linf]")]
Arch = Annotated[
    str | None,
    typer.Option(
        "--arch",
        metavar="NAME",
        help="resnet18, torchvision:NAME, timm:NAME, module:callable, ... [default: what the model names]",
        rich_help_panel=DATA, autocompletion=complete.architectures,
    ),
]  # fmt: skip
Mean = Annotated[
    str | None,
    typer.Option(
        "--mean",
        metavar="LIST",
        help="normalise the images in front of the model: a number, one a channel, or imagenet, cifar10, mnist, half "
        "(0.5), ..., which give --std too [default: what the model does itself]",
        rich_help_panel=DATA, autocompletion=complete.words(*STATISTICS),
    ),
]  # fmt: skip
Std = Annotated[
    str | None,
    typer.Option(
        "--std", metavar="LIST", help="the standard deviations that go with --mean",
        rich_help_panel=DATA, autocompletion=complete.words(*STATISTICS),
    ),
]  # fmt: skip
Abstain = Annotated[
    str | None,
    typer.Option(
        "--abstain",
        metavar="WHICH",
        help='last: the last logit, one more than classes, means "rejected", which withstands an attack '
        "[default: it never rejects]",
        rich_help_panel=DATA, autocompletion=complete.words("last"),
    ),
]  # fmt: skip
Name = Annotated[
    str | None,
    typer.Option(
        "--name", metavar="TEXT", help="what tables and figures call the model [default: its spec]",
        rich_help_panel=OUTPUT,
    ),
]  # fmt: skip
Seed = Annotated[
    int,
    typer.Option(
        "--seed", metavar="N", min=0, max=LARGEST_SEED, help="seed of all random numbers", rich_help_panel=MEASURE
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "--device", metavar="NAME", help="auto (a GPU if there is one), cpu, cuda or cuda:N",
        rich_help_panel=RUNNING, autocompletion=complete.words("auto", "cpu", "cuda"),
    ),
]  # fmt: skip
Precision = Annotated[
    str,
    typer.Option(
        "--precision", metavar="NAME", help="auto (the faster one), fp32 or bf16",
        rich_help_panel=RUNNING, autocompletion=complete.words("auto", "fp32", "bf16"),
    ),
]  # fmt: skip
TrustPickle = Annotated[
    bool,
    typer.Option(
        "--trust-pickle", help="load pickles, which can run any code: only if you trust their author",
        rich_help_panel=RUNNING,
    ),
]  # fmt: skip
TrustCode = Annotated[
    bool,
    typer.Option(
        "--trust-code", help="run code that only a file names: a record, a run folder or a recipe",
        rich_help_panel=RUNNING,
    ),
]  # fmt: skip
Force = Annotated[bool, typer.Option("--force", help="replace what --out holds", rich_help_panel=OUTPUT)]
Resume = Annotated[
    bool,
    typer.Option("--resume", help="continue what was interrupted, skip what is finished", rich_help_panel=OUTPUT),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="only say what would be done, and in how many passes", rich_help_panel=OUTPUT),
]
Json = Annotated[
    bool, typer.Option("--json", help="print JSON objects, one per line, and no progress", rich_help_panel=OUTPUT)
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", "-s", metavar="FIELD=VALUE", help="a setting, such as steps=40; repeatable",
        rich_help_panel=MEASURE, callback=_settings,
    ),
]  # fmt: skip
AttackBudget = Annotated[
    int | None,
    typer.Option(
        "--attack-budget",
        metavar="PASSES",
        help="forward and backward passes of all attacks together on an image, at each eps [default: the attacks' own]",
        rich_help_panel=MEASURE,
    ),
]
Flags = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE", help="TOML file with flags of this command, and [set] for --set",
        is_eager=True, callback=_read_flags, rich_help_panel=RUNNING,
    ),
]  # fmt: skip
On = Annotated[
    str,
    typer.Option(
        "--on", metavar="WHERE",
        help="local; ray[:ADDRESS][,cpus=N][,gpus=N]; or slurm:partition=P,time=MINUTES,gpus=N,...: one task per model",
        rich_help_panel=RUNNING, autocompletion=complete.words("local", "ray", "slurm:"),
    ),
]  # fmt: skip
