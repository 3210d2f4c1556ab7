"""The flags that several commands share, as annotations."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from advbench.consent import Consent
from advbench.errors import UserError, reading, unknown


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
    names = {name: option for option in context.command.params for name in (option.name or "", *option.opts)}
    names = {name.lstrip("-"): option for name, option in names.items() if option.name not in ("config", "settings")}
    defaults: dict[str, object] = {}
    for key, value in given.items():
        if key not in names:
            raise unknown(f"flag in {path}", key, {name.lstrip("-") for o in names.values() for name in o.opts})
        option = names[key]
        if option.name in ("trust_pickle", "trust_code"):
            raise UserError(f"--config {path}: {key} is for you to say, on the command line")
        several = getattr(option, "multiple", False) or option.nargs == -1
        defaults[str(option.name)] = [str(one) for one in value] if isinstance(value, list) and several else value
    if fields:
        defaults["settings"] = [f"{name}={value}" for name, value in fields.items()]
    context.default_map = {**(context.default_map or {}), **defaults}
    return path


def was_given(context: typer.Context, parameter: str) -> bool:
    """Whether the flag stands on the command line, not only in --config."""
    source = context.get_parameter_source(parameter)
    return source is not None and source.name == "COMMANDLINE"


def consent(context: typer.Context) -> Consent:
    """What the command line consents to: its flags --trust-*, and the code that it names itself, not in --config."""
    given = [context.params[name] for name in context.params if was_given(context, name)]
    words = [word for value in given for word in (value if isinstance(value, list | tuple) else [value])]
    return Consent(
        pickle=context.params["trust_pickle"],
        code=context.params["trust_code"],
        named=frozenset(part.strip() for word in words for part in re.split("[,=]", str(word)) if ":" in part),
        file=None if context.params["config"] is None else str(context.params["config"]),
    )


Dataset = Annotated[
    str | None,
    typer.Option(
        "--dataset", metavar="NAME", help="digits, cifar10, npz:FILE, module:callable, ... (advbench list datasets)"
    ),
]
Arch = Annotated[
    str | None,
    typer.Option(
        "--arch",
        metavar="NAME",
        help="resnet18, ... (advbench list models), torchvision:NAME, timm:NAME or package.module:callable",
    ),
]
Mean = Annotated[
    str | None,
    typer.Option(
        "--mean",
        metavar="LIST",
        help="normalise the images in front of the model: a number, one a channel, or imagenet, cifar10, mnist, half "
        "(0.5), ..., which give --std too",
    ),
]
Std = Annotated[str | None, typer.Option("--std", metavar="LIST", help="the standard deviations that go with --mean")]
Abstain = Annotated[
    str | None,
    typer.Option(
        "--abstain",
        metavar="WHICH",
        help='last: the last logit, one more than classes, means "rejected", which withstands an attack',
    ),
]
Norm = Annotated[
    str | None, typer.Option("--norm", metavar="NAME", help="linf, l2, l1 or fourier-linf [default: linf]")
]
Name = Annotated[
    str | None,
    typer.Option("--name", metavar="TEXT", help="what tables and figures call the model [default: its spec]"),
]
LARGEST_SEED = 2**62 - 1
Seed = Annotated[int, typer.Option("--seed", metavar="N", min=0, max=LARGEST_SEED, help="seed of all random numbers")]
Device = Annotated[str, typer.Option("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N")]
Precision = Annotated[str, typer.Option("--precision", metavar="NAME", help="auto, fp32 or bf16")]
TrustPickle = Annotated[
    bool, typer.Option("--trust-pickle", help="load pickles, which can run any code: only if you trust their author")
]
TrustCode = Annotated[
    bool, typer.Option("--trust-code", help="run code that only a file names: a record, a run folder or a recipe")
]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="folder to write to")]
Force = Annotated[bool, typer.Option("--force", help="replace what --out holds")]
Resume = Annotated[bool, typer.Option("--resume", help="continue what was interrupted, skip what is finished")]
Json = Annotated[bool, typer.Option("--json", help="print JSON objects, one per line, and no progress")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="a setting, such as steps=40; repeatable")
]
Flags = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE", help="TOML file with flags of this command, and [set] for --set",
        is_eager=True, callback=_read_flags,
    ),
]  # fmt: skip
On = Annotated[
    str, typer.Option("--on", metavar="WHERE", help="local, or ray[:ADDRESS][,cpus=N][,gpus=N]: one Ray task per model")
]
