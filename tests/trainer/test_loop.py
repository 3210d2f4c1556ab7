"""The run as a whole: resuming to the bit, refusing, stopping, and what lands in the folder."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from advbench.checkpoint import load_model, read_card
from advbench.data import load
from advbench.errors import Interrupted, UserError
from advbench.files import locked
from advbench.methods.base import Method
from advbench.recipe import Recipe, saved_sha256
from advbench.trainer import Began, EpochDone, StepDone, Watch, device_of, estimate, folder, loop, prepare, train
from advbench.trainer.session import Session

Make = Callable[..., Recipe]


class StopAfter(Watch):
    """Stops at each of the numbers of steps drawn from `rng`, or when `steps` are done."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def stop(self) -> bool:
        self.left -= 1
        return self.left <= 0


def rows(out: Path) -> list[dict[str, object]]:
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    timed = ("seconds", "images_per_s")
    return [{name: value for name, value in json.loads(line).items() if name not in timed} for line in lines]


def weights(out: Path) -> dict[str, bytes]:
    return {str(file.relative_to(out)): file.read_bytes() for file in out.rglob("*.safetensors")}


@pytest.mark.parametrize(
    ("method", "sets"),
    [
        ("pgd-at", ["model.dropout=0.3", "average.name=ema", "inner.bn_mode=train"]),
        ("act", ["awp.gamma=0.01", "average.name=swa", "average.start=0.5", "inner.warmup=0.5"]),
        ("act", ["method.natural_arch=lenet5", "method.b_natural=0.5"]),
        ("free-at", ["augment.crop=1", "augment.flip=true", "optim.name=adam", "optim.lr=0.001"]),
    ],
)
def test_a_run_stopped_at_any_step_resumes_to_the_bit(
    recipe: Make, tmp_path: Path, method: str, sets: list[str]
) -> None:
    made = recipe(method, *sets)
    whole = train(made, tmp_path / "whole", device="cpu")
    rng, pieces, stops = random.Random(method), tmp_path / "pieces", 0
    while True:
        torch.manual_seed(rng.randrange(1000))  # what else the process did must not matter
        try:
            train(made, pieces, device="cpu", resume=True, watch=StopAfter(rng.randint(1, 6)))
            break
        except Interrupted as stopped:
            assert str(stopped).startswith("stopped in epoch")
            stops += 1
    assert stops >= 3
    assert weights(pieces) == weights(whole)
    assert rows(pieces) == rows(whole)
    a, b = read_card(whole), read_card(pieces)
    assert (a.files, a.results["epochs"], a.finished) == (b.files, b.results["epochs"], b.finished)
    counts = ("forwards", "backwards", "updates")
    assert [a.cost[name] for name in counts] == [b.cost[name] for name in counts]


def test_a_run_stopped_while_it_is_scored_has_the_rate_of_its_last_step(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe("pgd-at", "average.name=swa", "average.start=0", "schedule.name=onecycle")
    whole = train(made, tmp_path / "whole", device="cpu")
    watch = StopAfter(100)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "score", lambda *_, poll, **__: (setattr(watch, "left", 0), poll()))
        with pytest.raises(Interrupted):
            train(made, tmp_path / "pieces", device="cpu", watch=watch)
    pieces = train(made, tmp_path / "pieces", device="cpu", resume=True)
    assert rows(pieces) == rows(whole) and weights(pieces) == weights(whole)


@pytest.mark.parametrize("average", ["ema", "swa"])
def test_the_score_of_an_epoch_is_of_the_averaged_net_that_is_kept(recipe: Make, tmp_path: Path, average: str) -> None:
    made = recipe("standard", f"average.name={average}", "average.start=0", "optim.lr=0.3", "epochs=4", arch="mlp")
    out = train(made, tmp_path / "run", device="cpu")
    (best,) = [row for row in rows(out) if row.get("best")][-1:]
    _, held_out, _ = prepare.images(made, torch.device("cpu"))
    net = load_model(str(out), dataset=load("digits", "test")).net
    assert held_out is not None
    clean = (net(held_out.pixels(held_out.images)).argmax(1) == held_out.labels).float().mean().item()
    assert best["clean"] == pytest.approx(clean)
    assert len({row["clean"] for row in rows(out)}) > 1  # the epochs differ


def test_two_runs_are_equal_and_another_seed_differs(recipe: Make, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(random.randrange(1000))
        train(recipe("pgd-at", f"seed={seed}"), tmp_path / name, device="cpu")
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    assert weights(tmp_path / "a") != weights(tmp_path / "c")


@pytest.mark.parametrize("writing", ["recipe.toml", "train_state/state.bin", "last.safetensors", "run.json"])
def test_a_run_killed_within_its_first_write_of_a_file_resumes(recipe: Make, tmp_path: Path, writing: str) -> None:
    """What a killed writer leaves is a temporary file, which is no run and no state."""
    made, out, left = recipe("pgd-at"), tmp_path / "killed", tmp_path / "killed" / writing
    whole = train(made, tmp_path / "whole", device="cpu")
    order = ["recipe.toml", "train_state/state.bin", "last.safetensors", "run.json"]
    for name in order[: order.index(writing)]:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(whole / name, out / name)
    left.parent.mkdir(parents=True, exist_ok=True)
    left.with_name(f".{left.name}.a1b2c3d4.advbench.tmp").write_bytes(b"half")
    assert weights(train(made, out, device="cpu", resume=True)) == weights(whole)
    assert not list(out.rglob("*.tmp"))


def test_the_folder_holds_what_the_contract_says(recipe: Make, tmp_path: Path, drawn: None) -> None:
    made = recipe("act", arch="mlp")
    out = train(made, tmp_path / "run", device="cpu")
    names = {
        "model.safetensors",
        "last.safetensors",
        "recipe.toml",
        "metrics.jsonl",
        "train_state",
        "run.json",
        "parts",
        "training.svg",
    }
    assert names <= {file.name for file in out.iterdir()}
    assert (out / "training.svg").stat().st_size > 1000
    assert Recipe.load(out / "recipe.toml") == made
    card = read_card(out)
    assert (card.method, card.norm, card.eps_text, card.seed) == ("act", "linf", "0.1", 0)
    assert card.recipe_sha256 == made.sha256
    assert set(card.files) == {"model.safetensors", "last.safetensors", "parts/natural.safetensors"}
    for spec in (out, out / "last.safetensors", out / "parts" / "natural.safetensors"):
        assert load_model(str(spec), dataset=load("digits", "test")).arch == "mlp"
    # 6 steps of 16 images in 2 epochs; F and G once each, and F twice in the attack.
    assert (card.cost["forwards"], card.cost["backwards"]) == (2 * 6 * 16 * 4, 2 * 6 * 16 * 4)
    assert card.cost["updates"] == 2 * 6
    assert [row["epoch"] for row in rows(out)] == [1, 2]
    assert {"loss", "terms", "notes", "clean", "robust", "fgsm", "lr", "best"} <= set(rows(out)[0])
    assert all(0 < row["lr"] <= made.optim.lr for row in rows(out))  # type: ignore[operator]
    assert set(rows(out)[0]["terms"]) == {"ce", "natural_ce", "kl", "natural_kl"}  # type: ignore[call-overload]


def test_the_best_epoch_is_deployed_and_the_last_kept(recipe: Make, tmp_path: Path) -> None:
    out = train(recipe("standard", "epochs=4", "optim.lr=0.5"), tmp_path / "run", device="cpu")
    metrics = rows(out)
    merit = [(row["clean"], row["robust"]) for row in metrics]
    best = max(range(4), key=lambda epoch: (merit[epoch], epoch))
    card = read_card(out)
    assert card.results["best"] is not None and card.results["best"]["epoch"] == best + 1  # type: ignore[index, call-overload]
    same = (out / "model.safetensors").read_bytes() == (out / "last.safetensors").read_bytes()
    assert same == (best == 3)


def test_without_validation_the_last_epoch_is_deployed(recipe: Make, tmp_path: Path) -> None:
    out = train(recipe("pgd-at", "validation.fraction=0"), tmp_path / "run", device="cpu")
    assert (out / "model.safetensors").read_bytes() == (out / "last.safetensors").read_bytes()
    assert "robust" not in rows(out)[0]


def test_a_taken_folder_is_refused_and_left_alone(recipe: Make, tmp_path: Path) -> None:
    out = train(recipe(), tmp_path / "run", device="cpu")
    before = weights(out)
    with pytest.raises(UserError, match=r"--resume.*--force.*--out"):
        train(recipe(), out, device="cpu")
    with pytest.raises(UserError, match=r"another recipe \(optim.lr 0.05 -> 0.1; seed 0 -> 1\)"):
        train(recipe("pgd-at", "seed=1", "optim.lr=0.1"), out, device="cpu", resume=True)
    assert weights(out) == before
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    (stranger / "thesis.tex").write_text("mine", encoding="utf-8")
    for resume, force in ((False, False), (True, False), (False, True)):
        with pytest.raises(UserError, match="something other than a run"):
            train(recipe(), stranger, device="cpu", resume=resume, force=force)
    assert [file.name for file in stranger.iterdir()] == ["thesis.tex"]
    with pytest.raises(UserError, match="is a file"):
        train(recipe(), stranger / "thesis.tex", device="cpu")


def test_a_finished_run_is_left_as_it_is_and_force_overwrites_it(recipe: Make, tmp_path: Path) -> None:
    out = train(recipe(), tmp_path / "run", device="cpu")
    stamp = (out / "run.json").stat().st_mtime_ns
    train(recipe(), out, device="cpu", resume=True)
    assert (out / "run.json").stat().st_mtime_ns == stamp
    other = recipe("trades", "seed=2")
    train(other, out, device="cpu", force=True)
    assert Recipe.load(out / "recipe.toml") == other


def test_a_run_saved_before_a_field_existed_goes_on_and_its_card_fits_its_recipe(recipe: Make, tmp_path: Path) -> None:
    out, made, field = tmp_path / "run", recipe("compactness"), "natural_share = 0.0\n"

    def as_before() -> str:
        (out / "recipe.toml").write_text(made.to_toml().replace(field, ""), encoding="utf-8")
        return (out / "recipe.toml").read_text(encoding="utf-8")

    with pytest.raises(Interrupted):
        train(made, out, device="cpu", watch=StopAfter(3))
    assert field not in as_before()
    train(made, out, device="cpu", resume=True)
    assert Recipe.load(out / "recipe.toml") == made
    assert read_card(out).recipe_sha256 == saved_sha256(out / "recipe.toml")
    before = as_before()
    train(made, out, device="cpu", resume=True)  # a finished one is left as it is
    assert (out / "recipe.toml").read_text(encoding="utf-8") == before
    with pytest.raises(UserError, match=r"another recipe \(method.natural_share 0.0 -> 0.5\)"):
        train(recipe("compactness", "method.natural_share=0.5"), out, device="cpu", resume=True)


def test_one_process_at_a_time(recipe: Make, tmp_path: Path) -> None:
    with locked(tmp_path / "run" / ".lock"), pytest.raises(UserError, match="another process"):
        train(recipe(), tmp_path / "run", device="cpu")


def test_other_data_or_a_damaged_state_is_refused(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(recipe(), out, device="cpu", watch=StopAfter(3))
    with monkeypatch.context() as patch:
        patch.setattr(type(load("digits", "train")), "images_sha256", "0" * 64)
        with pytest.raises(UserError, match="other images"):
            train(recipe(), out, device="cpu", resume=True)
    with monkeypatch.context() as patch:
        patch.setattr(folder, "__version__", "9.9")
        with pytest.raises(UserError, match=r"was begun with advbench 0\.1\.0, this is 9\.9"):
            train(recipe(), out, device="cpu", resume=True)
    state = out / "train_state" / "state.bin"
    state.write_bytes(state.read_bytes()[:-1])
    with pytest.raises(UserError, match="state"):
        train(recipe(), out, device="cpu", resume=True)


def test_a_loss_that_is_not_finite_stops_with_epoch_and_batch(recipe: Make, tmp_path: Path) -> None:
    sets = ["epochs=30", "optim.lr=1e18", "schedule.name=piecewise", "schedule.warmup=0.5"]
    with pytest.raises(UserError, match=r"not finite from epoch \d+, batch \d+ of 6 on.*optim.lr") as caught:
        train(recipe("standard", *sets), tmp_path / "run", device="cpu")
    assert "\n" not in str(caught.value)


def test_the_last_good_checkpoint_survives_a_loss_that_is_not_finite(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from advbench.trainer.session import Session

    step = Session.step

    def poisoned(self: Session, order: torch.Tensor) -> None:
        step(self, order)
        if (self.epoch, self.position) == (1, 4):
            with torch.no_grad():
                self.nets.f.linear.weight.fill_(torch.nan)  # type: ignore[operator, union-attr]

    monkeypatch.setattr(Session, "step", poisoned)
    out = tmp_path / "run"
    with pytest.raises(
        UserError, match=r"epoch 2, batch 5 of 6.*model.safetensors and last.safetensors.*were saved before that"
    ):
        train(recipe(), out, device="cpu")
    loaded = load_model(str(out), trust_code=True)
    assert all(bool(value.isfinite().all()) for value in loaded.net.state_dict().values())
    assert read_card(out).results["epochs"] == 1


@pytest.mark.parametrize(("where", "arch"), [("step", "mlp"), ("step", "tiny_arch:Tiny"), ("score", "mlp")])
def test_a_lack_of_memory_says_what_to_do_and_the_run_resumes(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, arch: str
) -> None:
    made, calls = recipe("pgd-at", arch=arch), 0
    whole = train(made, tmp_path / "whole", device="cpu")
    owner: Any = Method if where == "step" else loop
    plain, fit = getattr(owner, where), 7 if where == "step" else 1  # till within the second epoch

    def hungry(*given: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > fit:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")
        return plain(*given, **more)

    with monkeypatch.context() as patch:
        patch.setattr(owner, where, hungry)
        with pytest.raises(UserError, match=r"^out of memory at batch_size 16 in fp32: .*smaller.*--resume$"):
            train(made, tmp_path / "run", device="cpu")
    assert len(rows(tmp_path / "run")) == 1
    train(made, tmp_path / "run", device="cpu", resume=True)
    assert rows(tmp_path / "run") == rows(whole) and weights(tmp_path / "run") == weights(whole)


def test_a_lack_of_memory_says_what_to_do_in_an_estimate_too(recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def hungry(*given: object, **more: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(import_module("advbench.trainer.estimate"), "score", hungry)
    with pytest.raises(UserError, match=r"^out of memory at batch_size 16 in fp32: "):
        estimate(recipe("pgd-at", arch="mlp"), device="cpu")


def test_other_errors_than_a_lack_of_memory_are_not_explained_as_one(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: object) -> None:
        raise RuntimeError("shapes")

    monkeypatch.setattr(Method, "step", broken)
    with pytest.raises(RuntimeError, match=r"^shapes$"):
        train(recipe("pgd-at", arch="mlp"), tmp_path / "run", device="cpu")


def test_an_update_at_the_rate_0_is_pointed_out(recipe: Make) -> None:
    sets = ["epochs=1", "train_n=16", "validation.fraction=0"]
    for schedule, told in (("onecycle", True), ("constant", False)):
        notes = Session(recipe("pgd-at", *sets, f"schedule.name={schedule}"), torch.device("cpu")).notes
        assert any("the only update is at the rate 0" in note for note in notes) is told


def test_adversarial_training_chosen_by_clean_accuracy_is_pointed_out(recipe: Make) -> None:
    at = ("center-loss", "method.base=at")
    for method, told in {("center-loss",): False, ("center-loss-at",): False, ("pgd-at",): False, at: True}.items():
        notes = Session(recipe(*method), torch.device("cpu")).notes
        assert any("chosen by clean accuracy" in note for note in notes) is told


def test_the_events_of_a_run(recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "REPORT_SECONDS", 0.0)
    events: list[object] = []

    class Listener(Watch):
        on_begin = on_step = on_epoch = lambda self, event: events.append(event)

    train(recipe(), tmp_path / "run", device="cpu", watch=Listener())
    assert [type(event) for event in events] == [Began, *([StepDone] * 6 + [EpochDone]) * 2]
    steps = [event for event in events if isinstance(event, StepDone)]
    assert [event.step for event in steps] == [*range(1, 7)] * 2
    assert all(event.terms["loss"] > 0 and event.images_per_s > 0 for event in steps)
    assert steps[-1].seconds_left == pytest.approx(0.0)
    done = [event for event in events if isinstance(event, EpochDone)]
    assert done[0].scores is not None and 0 <= done[0].scores.robust <= done[0].scores.clean <= 1


def test_the_estimate_counts_passes_and_touches_nothing(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    estimated = estimate(recipe("trades"), device="cpu")
    # The attack's pass on clean images has no backward pass; then 2 steps, and 2 outer passes.
    assert (estimated.forwards_per_image, estimated.backwards_per_image) == (5.0, 4.0)
    assert estimated.total_seconds == pytest.approx(2 * estimated.epoch_seconds)
    assert (estimated.steps, estimated.device, estimated.precision) == (6, "cpu", "fp32")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["cuda:99", "gpu", "mps", ""])
def test_devices_that_are_not_there(name: str) -> None:
    with pytest.raises(UserError, match="device"):
        device_of(name)


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["train_n=99999"], "more than the 1297 training images"),
        (["model.seed=3"], "model.seed follows from"),
        (["model.droput=0.5"], "droput"),
        (["validation.fraction=0.001"], "leaves none to hold out"),
        (["train_n=0", "validation.held_out=1297"], "train_n=0 leaves 1296 to hold out"),
        (["train_n=300", "validation.held_out=998"], "train_n=300 leaves 997 to hold out"),
        (["augment.crop=9"], "augment.crop 9 is more than the side"),
        (["augment.cutout=9"], "augment.cutout 9 is more than the side"),
        (["augment.policy=autoaugment"], "values up to 255, which digits lacks"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    recipe: Make, tmp_path: Path, sets: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        train(recipe("pgd-at", *sets), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["trades", "compactness-trades", "consistency-trades"])
def test_the_divergence_needs_a_start_off_the_image(method: str, tmp_path: Path) -> None:
    recipe = Recipe.resolve(method=method, dataset="digits", arch="mlp", sets=["inner.init=none"])
    with pytest.raises(UserError, match="flat at the image itself"):
        train(recipe, tmp_path / "run", device="cpu")
