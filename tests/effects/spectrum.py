"""Overdesign (trained at one spectrum of eps, attacked at another), quantisation and filters."""

from __future__ import annotations

from itertools import pairwise

from controls import AT
from evidence import Analysis, Claim, Effect, Runs
from findings import Numbers, Verdict, verdict

AT_0 = Runs("pgd-at", "pgd-at")  # seed 0 of the control
EPS = ("0.1", "0.15", "0.2")
DEEP = tuple(AT_0 if eps == "0.1" else Runs(f"pgd-at at {eps}", "pgd-at", eps=eps) for eps in EPS)
LINEAR = tuple(Runs(f"linear at {eps}", "pgd-at", arch="linear", eps=eps) for eps in EPS)
MATRIX = Analysis("spectrum", "spectrum", DEEP, ("--eps", "0.1,0.15", "-n", "500"))
CONTROL = Analysis("spectrum-linear", "spectrum", LINEAR, ("--eps", "0.1,0.15", "-n", "500", "--set", "attack=apgd-t"))
LEVELS = Analysis("quantize", "quantize", (AT,), ("-n", "500"))
FILTERS = Analysis("filters", "filters", DEEP)


def overdesign(numbers: Numbers) -> tuple[str, Verdict]:
    """A larger training eps is 2 points better at some delta."""
    return best(numbers, "spectrum/best")


def control(numbers: Numbers) -> tuple[str, Verdict]:
    """No larger training eps is 2 points better at any delta."""
    ours, found = best(numbers, "spectrum-linear/best")
    return ours, verdict(found == "not shown")


def best(numbers: Numbers, table: str) -> tuple[str, Verdict]:
    parts, gains = [], []
    for row in numbers.tables[table]:
        gain = 100 * float(row["gain"])
        parts.append(
            f"attacked at {row['delta']}: best trained at {row['best_eps']} ({100 * float(row['accuracy']):.1f}, "
            f"{gain:+.1f} over the same eps, for {100 * float(row['clean_cost']):.1f} clean"
            f"{'; the edge of the grid' if row['at_the_edge'] == 'True' else ''})"
        )
        gains.append(gain if row["overdesign"] == "True" else 0.0)
    return "; ".join(parts), verdict(max(gains) >= 2)


def quantised(numbers: Numbers) -> tuple[str, Verdict]:
    """The mean gain of quantising the first layer, under the plain attack and under the worst of three."""
    found = numbers.tables["quantize/accuracy"]
    gain = {
        name: sum(100 * (float(row[name]) - float(row["unquantized"])) for row in found) / len(found)
        for name in ("plain", "straight_through", "transfer", "worst")
    }
    ours = ", ".join(f"{name.replace('_', '-')} {value:+.1f}" for name, value in gain.items())
    return f"gain by attack: {ours} (mean of {len(found)} seeds)", verdict(gain["worst"] >= 0.5, gain["plain"] >= 0.5)


def amplification(numbers: Numbers) -> tuple[str, Verdict]:
    """The first layer's mean l1 norm falls from the smallest to the largest eps."""
    first = str(numbers.tables["filters/filters"][0]["layer"])
    sizes = {
        str(row["eps"]): float(row["mean_l1"])
        for row in numbers.tables["filters/filters"]
        if row["layer"] == first and str(row["run"]).endswith("s0")
    }
    ordered = [sizes[eps] for eps in sorted(sizes, key=float)]
    falls = all(a > b for a, b in pairwise(ordered))
    ours = ", ".join(f"{value:.2f} at {eps}" for eps, value in sorted(sizes.items(), key=lambda item: float(item[0])))
    return f"{first}, l1 norm: {ours}", verdict(falls)


EFFECT = Effect(
    system="spectrum",
    source="Overdesign, quantisation and filters, Sridhar et al. 2022, arXiv:2206.06496",
    runs=(AT, *DEEP[1:], *LINEAR),
    analyses=(MATRIX, CONTROL, LEVELS, FILTERS),
    claims=(
        Claim("trained at a larger eps than the attack's is better", "PGD-20, 8/255: 48.8 to 52.6", overdesign),
        Claim("a linear model shows no such gain (a negative control)", "none", control),
        Claim("quantising the first layer's outputs makes more robust", "+2.2 under PGD-20", quantised),
        Claim("filters of nets trained at larger eps amplify less", "first layer most of all", amplification),
    ),
)  # fmt: skip
