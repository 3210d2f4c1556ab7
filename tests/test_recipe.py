"""Recipes: precedence, exact round trips, FIELD=VALUE, and errors that name similar fields."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from advbench.data import parse
from advbench.errors import UserError
from advbench.models import architectures
from advbench.recipe import Recipe, differences, is_longer, parse_set, saved_sha256
from advbench.recipe.recipe import field_names
from advbench.recipe.trees import leaves, listed, merged, plain, put
from advbench.registry import entries
from advbench.trainer.optim import factor

PRESETS = [(name, preset) for name, entry in entries("methods").items() for preset in entry.about.get("presets", {})]
SHIPPED = Path(__file__).parent.parent / "advbench" / "recipes"


def test_the_default_is_act_on_digits() -> None:
    recipe = Recipe.resolve()
    assert (recipe.method.name, recipe.dataset, recipe.model.arch) == ("act", "digits", "small_cnn")
    assert recipe.threat.eps_value == 0.1
    assert recipe.run_name == "act-digits-small_cnn-linf-0.1-s0"


def test_precedence_from_the_method_to_set(tmp_path: Path) -> None:
    config = tmp_path / "mine.toml"
    config.write_text("epochs = 7\nbatch_size = 32\n[optim]\nlr = 0.5\n[inner]\nrel_step = 0.3\n", encoding="utf-8")
    plain_recipe = Recipe.resolve(method="trades", dataset="digits")
    assert plain_recipe.inner.init == "gauss"  # the method's value overrides the default
    assert plain_recipe.inner.rel_step == 0.2258
    shipped = tomllib.loads((SHIPPED / "digits.toml").read_text(encoding="utf-8"))
    assert plain_recipe.epochs == shipped["epochs"]  # the shipped one overrides the method's and the default

    recipe = Recipe.resolve(
        method="trades",
        config=config,
        flags={"epochs": 9, "optim.lr": None, "batch_size": 64},
        sets=["batch_size=16", "method.beta=3"],
    )
    assert recipe.inner.rel_step == 0.3  # the file's value overrides the method's
    assert recipe.optim.lr == 0.5  # a flag that is None counts as not given
    assert recipe.epochs == 9  # the flag's value overrides the file's
    assert recipe.batch_size == 16  # --set overrides the flag
    assert recipe.method.settings == {"beta": 3.0}


@pytest.mark.parametrize(("dataset", "arch"), [("digits", "mlp"), ("mnist", "small_cnn"), ("cifar10", "resnet18")])
def test_what_a_method_needs_is_not_lost_to_the_shipped_recipes(dataset: str, arch: str) -> None:
    meant = {"augment.crop"}  # consistency asks for crops; cifar10's own are larger
    for name, entry in entries("methods").items():
        recipe = Recipe.resolve(method=name, dataset=dataset, arch=arch)
        for path, value in entry.about.get("recipe", {}).items():
            assert path in meant or attrgetter(path)(recipe) == value, (name, path)


def test_a_shipped_recipe_may_hold_what_one_method_needs() -> None:
    assert Recipe.resolve(method="act", dataset="digits").method.settings["b_warmup"] == 0.5
    assert Recipe.resolve(method="act", dataset="cifar10").method.settings["b_warmup"] == 0.0
    assert Recipe.resolve(method="act", dataset="digits", sets=["method.b_warmup=0"]).method.settings["b_warmup"] == 0
    assert "b_warmup" not in Recipe.resolve(method="trades", dataset="digits").method.settings
    noise = {data: Recipe.resolve(method="n-fgsm", dataset=data).method.settings["k"] for data in ("mnist", "cifar10")}
    assert noise == {"mnist": 1.0, "cifar10": 2.0}
    rates = {data: Recipe.resolve(method="free-at", dataset=data).optim.lr for data in ("mnist", "cifar10")}
    assert (
        rates == {"mnist": 0.01, "cifar10": 0.1} and Recipe.resolve(method="pgd-at", dataset="mnist").optim.lr == 0.05
    )


@pytest.mark.parametrize(("method", "preset"), PRESETS)
@pytest.mark.parametrize(("dataset", "arch"), [("digits", "mlp"), ("mnist", "small_cnn"), ("cifar10", "resnet18")])
def test_a_preset_sets_its_fields_and_no_others(method: str, preset: str, dataset: str, arch: str) -> None:
    said = entries("methods")[method].about["presets"][preset]
    recipe = Recipe.resolve(method=method, dataset=dataset, arch=arch, preset=preset)
    found = leaves(recipe.tree())
    assert {path: found[path] for path in said} == said
    usual = leaves(Recipe.resolve(method=method, dataset=dataset, arch=arch).tree())
    assert {path for path in usual if found[path] != usual[path]} <= set(said) and set(found) == set(usual)
    kept = ("threat.", "model.", "augment.", "dataset", "seed")  # the user's matters, and the dataset's
    assert not [path for path in said if path.startswith(kept)]


def test_a_preset_yields_to_a_file_to_flags_and_to_set(tmp_path: Path) -> None:
    config = tmp_path / "mine.toml"
    config.write_text("epochs = 7\n[optim]\nlr = 0.5\n[schedule]\nfactor = 0.3\n", encoding="utf-8")
    recipe = Recipe.resolve(
        method="act", preset="paper", config=config, flags={"epochs": 9}, sets=["optim.lr=0.2", "method.b_warmup=0.1"]
    )
    assert recipe.label_smoothing == 0 and recipe.validation.select == "last"  # of the preset
    assert (recipe.schedule.factor, recipe.epochs, recipe.optim.lr) == (0.3, 9, 0.2)
    assert recipe.method.settings["b_warmup"] == 0.1
    config.write_text(recipe.to_toml(), encoding="utf-8")
    assert Recipe.resolve(config=config) == recipe == Recipe.load(config)  # a file needs no preset
    with pytest.raises(UserError, match=r"mine\.toml is the whole recipe of a run"):
        Recipe.resolve(config=config, preset="paper")


def test_an_unknown_preset_names_those_of_the_method() -> None:
    known = "did you mean rice\\? choose from bag-of-tricks, paper, rice"
    with pytest.raises(UserError, match=f"unknown preset of pgd-at 'ricce': {known}"):
        Recipe.resolve(method="pgd-at", preset="ricce")
    with pytest.raises(UserError, match="unknown preset of standard 'paper': there are none"):
        Recipe.resolve(method="standard", preset="paper")


@pytest.mark.parametrize(
    ("method", "preset", "epochs", "changes"),
    [  # the learning rate of an epoch, counted from 1, and of all after it, as the released code sets it
        ("act", "paper", 200, {1: 0.1, 60: 0.02, 120: 0.004, 160: 0.0008}),
        ("trades", "paper", 76, {1: 0.1, 75: 0.01}),
        ("mart", "paper", 120, {1: 0.01, 75: 1e-3, 90: 1e-4, 100: 1e-5}),
        ("pgd-at", "rice", 200, {1: 0.1, 101: 0.01, 151: 0.001}),
        ("pgd-at", "bag-of-tricks", 110, {1: 0.1, 101: 0.01, 106: 0.001}),
    ],
)
def test_presets_follow_the_released_schedules(
    method: str, preset: str, epochs: int, changes: dict[int, float]
) -> None:
    recipe = Recipe.resolve(method=method, preset=preset)
    assert recipe.epochs == epochs
    for epoch in range(1, epochs + 1):
        expected = next(lr for start, lr in reversed(changes.items()) if start <= epoch)
        for done in (epoch - 1, epoch - 0.01):  # its first step, and one of its last
            assert recipe.optim.lr * factor(recipe.schedule, done / epochs) == pytest.approx(expected), epoch


def test_fields_of_a_method_that_are_none_are_left_out(tmp_path: Path) -> None:
    plain_recipe = Recipe.resolve(method="act")
    assert not {"b_natural", "natural_arch"} & set(plain_recipe.method.settings)
    given_both = Recipe.resolve(method="act", sets=["method.b_natural=0.5", "method.natural_arch=lenet5"])
    assert given_both.method.settings == {**plain_recipe.method.settings, "b_natural": 0.5, "natural_arch": "lenet5"}
    with pytest.raises(UserError, match=r"method\.b_natural is '2': it must be at most 1"):
        Recipe.resolve(method="act", sets=["method.b_natural=2"])


def test_comma_lists_become_fields_of_several_values() -> None:
    recipe = Recipe.resolve(method="multi-task", sets=["method.tasks=rotation,autoencoder"])
    assert recipe.method.settings["tasks"] == ["rotation", "autoencoder"]


def test_names_from_any_source_decide_the_defaults() -> None:
    recipe = Recipe.resolve(sets=["method.name=trades", "dataset=cifar10", "model.arch=resnet18"])
    assert recipe.inner.init == "gauss"
    assert recipe.threat.eps == "8/255"
    assert Recipe.resolve(dataset="cifar10", norm="l2").threat.eps == "0.5"


def test_eps_is_kept_as_written() -> None:
    recipe = Recipe.resolve(eps="8/255")
    assert (recipe.threat.eps, recipe.threat.eps_value) == ("8/255", 8 / 255)
    assert Recipe.resolve(sets=["threat.eps=0.30"]).threat.eps == "0.30"
    with pytest.raises(UserError, match="8/255 was probably meant"):
        Recipe.resolve(eps="8")
    with pytest.raises(UserError, match="eps_value"):
        Recipe.resolve(eps="0.1", sets=["threat.eps_value=0.2"])


def test_a_resolved_recipe_as_config_yields_to_a_new_eps(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(Recipe.resolve(eps="8/255").to_toml(), encoding="utf-8")
    assert Recipe.resolve(config=path).threat.eps_value == 8 / 255
    assert Recipe.resolve(config=path, eps="0.2").threat.eps_value == 0.2


@pytest.mark.parametrize("method", list(entries("methods")))
def test_toml_round_trip_is_exact_for_every_method(method: str, tmp_path: Path) -> None:
    recipe = Recipe.resolve(method=method, eps="0.1", sets=["optim.lr=0.1234567890123456789", "inner.step_size=0.01"])
    path = tmp_path / "recipe.toml"
    path.write_text(recipe.to_toml(), encoding="utf-8")
    again = Recipe.load(path)
    assert again == recipe
    assert again.sha256 == recipe.sha256 == saved_sha256(path)
    assert again.to_toml() == recipe.to_toml()
    assert differences(recipe, again) == []


@given(
    lr=st.floats(1e-9, 1e3),
    milestones=st.lists(st.floats(0, 1), max_size=4),
    seed=st.integers(0, 2**62 - 1),
    beta=st.floats(0, 100),
)
def test_round_trip_of_any_numbers(lr: float, milestones: list[float], seed: int, beta: float) -> None:
    text = ",".join(map(repr, milestones))
    sets = [f"optim.lr={lr!r}", f"schedule.milestones={text}", f"seed={seed}", f"method.beta={beta!r}"]
    recipe = Recipe.resolve(method="trades", sets=sets)
    assert (recipe.optim.lr, list(recipe.schedule.milestones), recipe.seed) == (lr, milestones, seed)
    assert recipe.method.settings["beta"] == beta
    assert Recipe.read(tomllib.loads(recipe.to_toml())) == recipe


_WORD = st.text(st.characters(categories=["Ll", "Nd"], include_characters="_"), min_size=1)


@given(path=st.lists(_WORD, min_size=1, max_size=4), value=st.text())
def test_set_splits_at_the_first_equals(path: list[str], value: str) -> None:
    assert parse_set(f"{'.'.join(path)}={value}") == (".".join(path), value.strip())


@given(st.text(st.characters(exclude_characters="=")))
def test_set_without_equals_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="not FIELD=VALUE"):
        parse_set(text)


@given(st.one_of(st.integers(), st.booleans(), st.floats(allow_nan=False, allow_infinity=False)))
def test_texts_of_the_architecture_are_read_as_toml_reads_them(value: float) -> None:
    assert plain(str(value).lower() if isinstance(value, bool) else repr(value)) == value
    assert plain("layer1:8") == "layer1:8"
    assert plain("relu") == "relu"


@pytest.mark.parametrize("text", ["=1", "optim..lr=1", ".lr=1", "optim.=1"])
def test_set_with_an_empty_name_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="not FIELD=VALUE"):
        parse_set(text)


@pytest.mark.parametrize(
    ("given_set", "message"),
    [
        ("optim.learning_rate=1", "unknown recipe field 'optim.learning_rate': .*optim.lr"),
        ("optim.momentun=1", "did you mean optim.momentum"),
        ("lr=1", "did you mean optim.lr"),
        ("epoch=1", "did you mean epochs"),
        ("method.betta=1", "unknown field of the method 'betta': did you mean beta"),
        ("optim.lr=-1", "optim.lr is '-1': it must be above 0"),
        ("optim.lr=nan", "optim.lr"),
        ("epochs=many", "epochs is 'many': it must be a whole number"),
        ("epochs=0", "epochs"),
        ("inner.init=gaus", "inner.init is 'gaus': it must be uniform, gauss or none"),
        ("method.beta=much", "method.beta is 'much': it must be a number"),
        ("optim=sgd", "optim"),
        ("epochs.x=1", "epochs has no fields"),
        ("schedule.milestones=0.5,2", "milestones"),
        ("model=mlp", "model is a table"),
        ("method=act", "method is a table"),
        ("method.name=pdg-at", "did you mean pgd-at"),
    ],
)
def test_bad_settings_give_one_line_that_names_similar_fields(given_set: str, message: str) -> None:
    sets = [given_set] if given_set.startswith("epochs.x") is False else ["epochs=3", given_set]
    with pytest.raises(UserError, match=message) as caught:
        Recipe.resolve(method="trades", sets=sets) if "method.name" not in given_set else Recipe.resolve(sets=sets)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_recipe(tmp_path: Path) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text("epochs = = 3", encoding="utf-8")
    with pytest.raises(UserError, match=r"cannot read recipe .*broken.toml: TOMLDecodeError"):
        Recipe.resolve(config=broken)
    with pytest.raises(UserError, match="cannot read recipe"):
        Recipe.resolve(config=tmp_path / "absent.toml")
    with pytest.raises(UserError, match="is missing"):
        Recipe.read({"dataset": "digits"})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(sorted({name.partition(".")[0] for name in field_names()} | set(field_names()))), JSON)
def test_any_value_in_any_field_is_read_or_refused(path: str, value: Any) -> None:
    tree = Recipe.resolve().tree()
    put(tree, path, value)
    try:
        recipe = Recipe.read(tree)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert Recipe.read(tomllib.loads(recipe.to_toml())) == recipe


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode) | st.sampled_from([b"a=" + b"[" * 5000]))
def test_any_file_is_a_recipe_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("recipe") / "x.toml"
    path.write_bytes(content)
    for read in (Recipe.load, lambda path: Recipe.resolve(config=path)):
        try:
            recipe = read(path)
        except UserError as error:
            assert "\n" not in str(error)
        else:
            assert recipe.epochs >= 1  # an empty file changes nothing


@given(st.text(max_size=12) | st.sampled_from(field_names()), st.text(max_size=12))
def test_any_setting_is_taken_or_refused(path: str, value: str) -> None:
    try:
        Recipe.resolve(sets=[f"{path}={value}"])
    except UserError as error:
        assert "\n" not in str(error)


def test_a_recipe_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Recipe.resolve().epochs = 3  # type: ignore[misc]


def test_the_spelling_of_eps_and_of_a_folder_is_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def made(eps: str, dataset: str) -> Recipe:
        return Recipe.resolve(method="trades", arch="mlp", eps=eps, dataset=dataset)

    recipes = [
        made(eps, f"imagefolder:{folder}@32")
        for eps, folder in (("0.1", "data"), ("0.10", "data/"), ("1/10", tmp_path / "data"), (".1", "./data"))
    ]
    assert {recipe.sha256 for recipe in recipes} == {recipes[0].sha256}
    assert {recipe.run_name for recipe in recipes} == {recipes[0].run_name}
    assert all(differences(recipes[0], other) == [] for other in recipes)
    assert [recipe.threat.eps for recipe in recipes] == ["0.1", "0.10", "1/10", ".1"]
    for number, recipe in enumerate(recipes):
        path = tmp_path / f"{number}.toml"
        path.write_text(recipe.to_toml())
        assert Recipe.load(path) == recipe and saved_sha256(path) == recipes[0].sha256
    other = made("0.2", "imagefolder:data@64")
    assert differences(recipes[1], other) == [
        "dataset imagefolder:data@32 -> imagefolder:data@64", "threat.eps 0.1 -> 0.2", "threat.eps_value 0.1 -> 0.2"
    ]  # fmt: skip


def test_recipes_that_differ_by_their_seed_are_of_one_series() -> None:
    one, two, other = (Recipe.resolve(eps="0.1", flags=flags) for flags in ({}, {"seed": 3}, {"epochs": 3}))
    assert one.series_sha256 == two.series_sha256 != other.series_sha256
    assert one.sha256 != two.sha256


@pytest.mark.parametrize(
    ("method", "field", "other"),
    [("compactness", "natural_share = 0.0\n", "0.5"), ("compactness-trades", 'base = "trades"\n', "at")],
)
def test_a_field_that_a_saved_recipe_lacks_counts_as_its_default(
    method: str, field: str, other: str, tmp_path: Path
) -> None:
    """As in a run that was saved before the field existed. A default may be the entry's, such as the base."""
    new, path = Recipe.resolve(method=method), tmp_path / "recipe.toml"
    assert field in new.to_toml()
    path.write_text(new.to_toml().replace(field, ""), encoding="utf-8")
    old, name = Recipe.load(path), field.split()[0]
    assert name not in old.method.settings and old.sha256 == saved_sha256(path)
    assert differences(old, new) == differences(new, old) == []
    assert is_longer(old, Recipe.resolve(method=method, flags={"epochs": new.epochs + 1}))
    changed = Recipe.resolve(method=method, sets=[f"method.{name}={other}"])
    default = new.method.settings[name]
    assert differences(old, changed) == [f"method.{name} {default} -> {other}"]


def test_differences_name_the_field_and_both_values() -> None:
    a = Recipe.resolve(method="trades", eps="0.1")
    b = Recipe.resolve(method="trades", eps="0.1", sets=["method.beta=1", "seed=3"])
    assert differences(a, b) == ["method.beta 6.0 -> 1.0", "seed 0 -> 3"]
    assert a.sha256 != b.sha256


@pytest.mark.parametrize("file", sorted(SHIPPED.glob("*.toml")), ids=lambda file: file.stem)
def test_shipped_recipes_are_for_what_exists_and_resolve(file: Path) -> None:
    dataset, _, arch = file.stem.partition("-") if file.stem != "fashion-mnist" else ("fashion-mnist", "", "")
    if file.stem.startswith("fashion-mnist-"):
        dataset, arch = "fashion-mnist", file.stem.removeprefix("fashion-mnist-")
    if file.stem == "default":
        dataset = "cifar100"
    parse(dataset)
    assert not arch or arch in architectures()
    for method in ("standard", "pgd-at", "trades", "act"):
        for norm in ("linf", "l2", "l1", "fourier-linf"):
            Recipe.resolve(method=method, dataset=dataset, arch=arch or None, norm=norm)


def test_unknown_dataset_and_architecture_fall_back_to_the_default() -> None:
    recipe = Recipe.resolve(method="pgd-at", dataset="imagefolder:/some/where", arch="torch.nn:Linear")
    assert recipe.threat.eps == "8/255"
    assert recipe.run_name == "pgd-at-imagefolder_some_where-torch.nn_Linear-linf-8_255-s0"


def test_field_names_are_dotted_and_whole() -> None:
    names = field_names()
    assert {"epochs", "optim.lr", "inner.bn_mode", "threat.eps", "awp.gamma", "average.name"} <= set(names)
    assert "optim" not in names


def test_tables_merge_and_values_replace() -> None:
    assert merged({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"c": 4}, "d": {"e": 5}}) == {
        "a": {"b": 1, "c": 4},
        "d": {"e": 5},
    }
    tree: dict[str, object] = {}
    put(tree, "a.b.c", 1)
    assert tree == {"a": {"b": {"c": 1}}}
    assert listed("[0.5, 0.75]") == ["0.5", "0.75"]


def test_reading_a_recipe_loads_no_torch(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(Recipe.resolve().to_toml(), encoding="utf-8")
    code = (
        "import sys; from pathlib import Path; from advbench.recipe import Recipe; "
        f"Recipe.load(Path({str(path)!r})).sha256; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)
