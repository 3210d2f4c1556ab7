"""Recipes: what decides a training run. Loads no torch, except in `Recipe.resolve`, which asks the method its fields.

Where a value comes from, later wins: the defaults of `fields`, the method's own (`recipe` in its ENTRIES), the shipped
recipe for dataset and architecture, a TOML file, flags, FIELD=VALUE settings. Steps are relative to eps and
milestones to the epochs, so that one recipe serves every eps and length.
"""

from advbench.recipe.fields import (
    Augment,
    Average,
    Awp,
    Inner,
    MethodSpec,
    ModelSpec,
    Optim,
    Schedule,
    Threat,
    Validation,
)
from advbench.recipe.recipe import Recipe, differences, method_fields, saved_sha256
from advbench.recipe.trees import parse_set

__all__ = [
    "Augment",
    "Average",
    "Awp",
    "Inner",
    "MethodSpec",
    "ModelSpec",
    "Optim",
    "Recipe",
    "Schedule",
    "Threat",
    "Validation",
    "differences",
    "method_fields",
    "parse_set",
    "saved_sha256",
]
