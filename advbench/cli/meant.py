"""What someone meant who typed a command, a flag or a word that there is not, by its meaning."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from advbench.defaults.listing import FOLDERS
from advbench.defaults.listing import KINDS as LISTED
from advbench.registry import entries, kind_of

_COMMANDS = {
    "gate": "compare A --baseline B --fail-if 'clean < baseline - 1'",
    **dict.fromkeys(("test", "eval", "bench", "benchmark", "measure", "accuracy", "robustness"), "evaluate"),
    **dict.fromkeys(("diff", "plot"), "compare"),
    **dict.fromkeys(("explain", "provenance"), "compare --explain RECORD"),
    **dict.fromkeys(("fit", "finetune", "fine-tune"), "train"),
    **dict.fromkeys(("perturb", "generate", "examples"), "attack"),
    **dict.fromkeys(("ls", "show", "info"), "list"),
    **{kind: f"list {kind}" for kind in LISTED},
    **dict.fromkeys(("table", "tables", "rank", "ranking", "board", "page"), "leaderboard DIR"),
    **dict.fromkeys(("again", "repeat", "reproduce"), "evaluate --again RECORD"),
    **dict.fromkeys(("resume", "continue"), "COMMAND --resume"),
    "version": "--version",
    "help": "--help",
}
# Several meanings: the first whose flag the command has.
_FLAGS = {
    **dict.fromkeys(("epsilon", "epsilons", "radius"), ("--eps",)),
    **dict.fromkeys(("samples", "num-samples", "images", "num-images", "num", "number", "limit", "n"), ("-n",)),
    **dict.fromkeys(("data", "images-dir", "test-set"), ("--dataset",)),
    **dict.fromkeys(("weights", "checkpoint", "ckpt", "run", "net", "path"), ("--model", "--init")),
    **dict.fromkeys(("network", "architecture", "backbone"), ("--arch",)),
    **dict.fromkeys(("output", "output-dir", "save", "save-dir", "dir", "folder"), ("--out",)),
    **dict.fromkeys(("learning-rate", "eta"), ("--lr",)),
    **dict.fromkeys(("batch", "bs"), ("--batch-size",)),
    **dict.fromkeys(("gpu", "cuda", "gpus"), ("--device cuda",)),
    "cpu": ("--device cpu",),
    **dict.fromkeys(("overwrite", "replace"), ("--force",)),
    **dict.fromkeys(("continue", "restart"), ("--resume",)),
    **dict.fromkeys(("threat", "threat-model", "p", "ball", "metric"), ("--norm",)),
    "targeted": ("--attack apgd-t, which aims at each class; --set n_targets=N limits them",),
    **dict.fromkeys(("bf16", "fp32", "amp", "half", "dtype"), ("--precision",)),
    **dict.fromkeys(("normalize", "normalization"), ("--mean",)),
    **dict.fromkeys(("repeat", "reproduce"), ("--again",)),
    "pretrained": ("--model", "--init"),
    "adversary": ("--attack",),
    "algorithm": ("--method",),
    "title": ("--name",),
    "unsafe": ("--trust-pickle",),
}


def command(given: str) -> str:
    """What to type instead of the command `given`, with "advbench"; empty where nothing is known."""
    if given in _COMMANDS:
        return f"advbench {_COMMANDS[given]}"
    if flag := kind_of(given):
        takes = "train" if flag == "--method" else "evaluate"
        return f"advbench {flag} {given}" if flag == "analyze" else f"advbench {takes} {flag} {given}"
    return f"advbench evaluate --model {given}" if Path(given).exists() else ""


def listed(name: str) -> str:
    """What to type after "advbench" to read about `name`; empty where nothing is registered under it."""
    kinds = [kind for kind, folder in FOLDERS.items() if name in entries(folder)]
    return f"list {kinds[0]} {name}" if kinds else ""


def flag(given: str, value: str, name: str, known: Mapping[str, Collection[str]]) -> str:
    """What to type instead of the flag `given` of the command `name`; empty where nothing is known.

    `value`: the word after it, if any. `known`: the flags of each command; `name` is none of them for a flag that
    stands before the command.
    """
    word = given.lstrip("-").lower()
    for meaning in _FLAGS.get(word.replace("_", "-"), ()):
        if meaning.split()[0] in known.get(name, ()):
            takes_value = " " not in meaning and meaning not in ("--force", "--resume")
            return f"write {meaning} {value}".rstrip() if takes_value else f"write {meaning}"
    if others := [other for other, flags in known.items() if given in flags]:
        before = "" if name in known else ", and stands behind the command"
        return f"it is a flag of advbench {' and '.join(others)}{before}"
    if field := setting(word.replace("-", "_"), name):
        return f"it is a setting: write --set {field}={value or 'VALUE'}"
    return ""


def setting(word: str, name: str) -> str:
    """The field for --set of the command `name` that is called `word`; empty if there is none. Loads torch."""
    if name == "train":
        from advbench.recipe.recipe import field_names

        last = {field.rpartition(".")[2]: field for field in reversed(field_names())}
        return word if word in last.values() else last.get(word) or _of_methods(word)
    if name in ("attack", "evaluate"):
        from advbench.evaluator.attack_set import having_setting

        return word if having_setting(word) else ""
    if name == "analyze":
        from advbench.registry import parameters

        return word if any(word in parameters(entry.load()) for entry in entries("analyses").values()) else ""
    return ""


def _of_methods(word: str) -> str:
    import dataclasses

    makers = [entry.load() for entry in entries("methods").values()]
    fields = {field.name for maker in makers if dataclasses.is_dataclass(maker) for field in dataclasses.fields(maker)}
    return f"method.{word}" if word in fields else ""


def extra(given: str, name: str, known: Collection[str], argv: Sequence[str] = ()) -> str:
    """What to type instead of the word `given` that stands alone in `argv`, behind the command `name`."""
    threes = zip(argv, argv[1:], argv[2:], strict=False)
    flag, value, _ = next((three for three in threes if three[2] == given), ("", "", ""))
    if flag in ("--eps", "-e") and flag in known:
        return f"write {flag} {value},{given}"
    if flag in ("--set", "-s") and flag in known and "=" not in value:
        return f"write {flag} {value}={given}"
    if (own := kind_of(given)) and own in known:
        return f"write {own} {given}"
    if given[:1].isdigit() and "--eps" in known:
        return f"write --eps {given}"
    if "--model" in known:
        return f"write --model {given}"
    return f"advbench {name} takes {'fewer words' if name in ('list', 'leaderboard') else 'flags alone'}"
