"""Recipes: the settings of a training run. Only `Recipe.resolve` loads torch, since it reads the method's fields.

A value comes from the last of these that has it: the defaults of `fields`, the method's own (`recipe` in its ENTRIES),
the shipped recipe for dataset and architecture, a preset of the method (`presets` in its ENTRIES: fields by name), a
TOML file, flags, FIELD=VALUE settings. A recipe holds the fields alone, not the name of a preset. Step sizes are
relative to eps and milestones to the epochs, so one recipe serves every eps and length.
"""

from advbench.recipe.fields import (
    Augment,
    Average,
    Awp,
    Init,
    Inner,
    MethodSpec,
    ModelSpec,
    Optim,
    Schedule,
    Threat,
    Validation,
)
from advbench.recipe.recipe import Recipe, differences, is_longer, method_fields, saved_sha256
from advbench.recipe.trees import parse_set

__all__ = [
    "Augment",
    "Average",
    "Awp",
    "Init",
    "Inner",
    "MethodSpec",
    "ModelSpec",
    "Optim",
    "Recipe",
    "Schedule",
    "Threat",
    "Validation",
    "differences",
    "is_longer",
    "method_fields",
    "parse_set",
    "saved_sha256",
]
