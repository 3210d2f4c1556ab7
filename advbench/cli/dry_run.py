"""`--dry-run` of `evaluate` and `attack`: what would be measured, and about how many passes it takes. Loads torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from advbench.cli.console import Screen
from advbench.defaults.target import Target
from advbench.evaluator import Settings
from advbench.evaluator.plan import Plan


def show(run: Plan, settings: Settings, target: Target, *, n: int, first: str, out: Path, screen: Screen) -> None:
    """Print the attacks of `run` on `n` images with their settings and passes, or one JSON object.

    `first`: what is measured on what. The passes are those of images that withstand everything; images that fall need
    fewer. Looking for flags is not counted, and those of an escalation, which may follow, are told apart.
    """
    classes, whole = target.data.num_classes, run.whole()
    strikes = whole.strikes(sum(size.value > 0 for size in settings.grid))
    passes = [
        [count * n * one for one in attack.passes(classes)] for attack, count in zip(whole.every, strikes, strict=True)
    ]
    rows = [(ref.name, _written(ref.settings)) for ref in run.refs]
    sure = len(run.every)
    forwards, backwards = (sum(counts) for counts in zip(*passes[:sure], strict=True))
    more = sum(map(sum, passes[sure:]))
    if screen.as_json:
        attacks = [ref.model_dump(mode="json") for ref in run.refs]
        eps = [str(size) for size in settings.grid]
        about: dict[str, Any] = {
            "model": target.loaded.spec,
            "dataset": target.data.name,
            "norm": settings.norm,
            "eps": eps,
            "n": n,
            "attack": attacks,
            "precision": run.precision,
            **({"escalation": more} if more else {}),
        }
        screen.json({**about, "curve": run.curve, "forwards": forwards, "backwards": backwards, "out": str(out)})
        return
    screen.say(first)
    counts = [(f"{forward:,}", f"{backward:,}") for forward, backward in passes]
    screen.table(
        ("attack", "forward", "backward", "settings"),
        [(name, *count, text) for (name, text), count in zip(rows, counts, strict=True)],
    )
    screen.say(
        f"roughly {forwards:,} forward and {backwards:,} backward passes of one image if every image stands, fewer as "
        f"they fall; {run.precision}, {run.curve} curve"
    )
    for attack in run.every:
        if attack.few_go_on:
            screen.say(f"{attack.name} makes far fewer: it gives up images that are far from failure")
    if more:
        screen.say(f"where the attacks of the stage escalation follow, roughly {more:,} passes more")
    screen.say(f"into {out}: nothing was measured or written")


def _written(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items() if value and name != "set")
