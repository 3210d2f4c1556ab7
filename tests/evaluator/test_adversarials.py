"""Adversarial images made elsewhere: only the model decides which count, and a fate can only become worse."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyautoattack import AutoAttack
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

import advbench
from advbench.data import load
from advbench.data.dataset import Dataset
from advbench.errors import UserError
from advbench.evaluator import Evaluation, Settings, answers, check, evaluate
from advbench.evaluator.added import added
from advbench.evaluator.adversarials import Adversarials, read_adversarials
from advbench.evaluator.evaluate import bare, planned
from advbench.evaluator.identity import question_of
from advbench.record import NEVER, Fates, load_record

N = 60
GRIDS = {"linf": "0,0.05,0.1,0.2", "l2": "0,0.3,0.6,1.2", "l1": "0,1,2,4", "l0": "0,2,4,8"}
WEAK: dict[str, tuple[str, dict[str, int]]] = {
    **dict.fromkeys(("linf", "l2", "l1"), ("square", {"n_queries": 1})),
    "l0": ("sigma-zero", {"steps": 1}),
}
STRONG = {"linf": "apgd-ce", "l2": "apgd-ce", "l1": "apgd-ce", "l0": "sigma-zero"}


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits", "test").subset(range(100, 100 + N))


@pytest.fixture(scope="module")
def linear() -> nn.Module:
    x, y = load("digits", "train").batch(slice(0, 600))
    fit = LogisticRegression(C=0.1, max_iter=500).fit(x.flatten(1).numpy(), y.numpy())
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    net[1].weight.data = torch.tensor(fit.coef_, dtype=torch.float32)
    net[1].bias.data = torch.tensor(fit.intercept_, dtype=torch.float32)
    return net.eval()


def file(path: Path, x_adv: Any, index: Any, names: tuple[str, str] = ("x_adv", "index")) -> Path:
    np.savez(path, **{names[0]: np.asarray(x_adv), names[1]: np.asarray(index)})
    return path


def found_by(net: nn.Module, data: Dataset, norm: str, eps: str) -> Tensor:
    """Images (n, C, H, W) after a strong attack at `eps`."""
    settings = Settings(
        attack=STRONG[norm], attack_settings={"steps": 30}, eps=[eps], norm=norm, keep_points=True, probes=False
    )
    return evaluate(net, data, settings).adversarials


def weak(net: Any, data: Dataset, norm: str = "linf", given: tuple[Adversarials, ...] = (), **more: Any) -> Evaluation:
    attack, settings = WEAK[norm]
    asked = {"attack": attack, "attack_settings": settings, "eps": GRIDS[norm].split(","), **more}
    return evaluate(net, data, Settings(norm=norm, probes=False, adversarials=given, **asked))


def lowest_ball(norm: str, x: Tensor, z: Tensor, sizes: list[float]) -> np.ndarray:
    """By numpy: (n,) the lowest point of the grid above 0 whose ball around x holds z, NEVER if none."""
    x, z = x.numpy(), z.numpy()  # type: ignore[assignment]
    d = (np.asarray(z, dtype=np.float64) - x).reshape(len(x), -1)
    found = np.full(len(x), NEVER)
    for point in reversed(range(1, len(sizes))):
        if norm == "linf":
            e = np.float32(sizes[point])
            inside = ((z >= x - e) & (z <= x + e)).reshape(len(x), -1).all(1)  # type: ignore[operator]
        else:
            size = {"l2": (d**2).sum(1) ** 0.5, "l1": np.abs(d).sum(1), "l0": (d != 0).sum(1)}[norm]
            inside = size <= sizes[point] * (1 + 1e-5) + 1e-6
        found[inside] = point
    return found


@pytest.mark.parametrize("norm", GRIDS)
def test_each_image_counts_at_every_eps_whose_ball_holds_it(
    linear: nn.Module, digits: Dataset, norm: str, tmp_path: Path
) -> None:
    middle = GRIDS[norm].split(",")[2]
    z = found_by(linear, digits, norm, middle)
    x, y = digits.batch(slice(None))
    z = torch.where((torch.arange(N) % 3 == 0).view(-1, 1, 1, 1), z, x + (z - x) * 0.6)
    given = read_adversarials([file(tmp_path / "theirs.npz", z.numpy(), digits.indices.numpy())])
    before, after = weak(linear, digits, norm), weak(linear, digits, norm, given)

    fools = (linear(z).argmax(1) != y).numpy()
    theirs = np.where(fools, lowest_ball(norm, x, z, before.record.eps), NEVER)
    was = np.where(before.fates.fell < 0, NEVER, before.fates.fell)
    lower = (theirs < was) & before.fates.clean
    assert lower.sum() > 5 and (theirs == NEVER).sum() > 5
    assert np.array_equal(after.fates.fell, np.where(lower, theirs, before.fates.fell))
    assert np.array_equal(after.fates.by, np.where(lower, 1, before.fates.by))
    assert after.record.external[0].felled == lower.sum()
    assert set(after.frame()["by"]) >= {"external:theirs"}
    (tally,) = after.tallies
    assert tally.felled == lower.sum() and tally.verified + sum(tally.refused.values()) == tally.count == N
    assert tally.verified == (fools & before.fates.clean).sum()


def test_only_what_is_in_the_ball_and_fools_counts(linear: nn.Module, digits: Dataset, tmp_path: Path) -> None:
    x, _ = digits.batch(slice(None))
    z = found_by(linear, digits, "linf", "0.2")
    whole = weak(linear, digits)
    fell = (linear(z).argmax(1) != digits.labels).numpy() & whole.fates.clean
    row = int(np.flatnonzero(fell & (whole.fates.fell < 0))[0])
    index = digits.indices.numpy()
    beyond = x[row] + (z[row] - x[row]) * 1.01
    far = x[row].clone()
    far[0, 0, 0] = 1.5
    nan = x[row].clone()
    nan[0, 0, 0] = torch.nan
    wrong_already = int(np.flatnonzero(~whole.fates.clean)[0])
    images = torch.stack([beyond.clamp(0, 1), x[row], far, nan, z[row], z[row], z[wrong_already]])
    places = [*[index[row]] * 4, 0, -1, index[wrong_already]]
    for name, dtype in (("a", np.float32), ("b", np.float64)):
        given = read_adversarials([file(tmp_path / f"{name}.npz", images.numpy().astype(dtype), places)])
        after = weak(linear, digits, given=given)
        assert np.array_equal(after.fates.fell, whole.fates.fell) and after.record.external[0].felled == 0
        assert after.tallies[0].verified == 0 and dict(after.tallies[0].refused) == {
            "of images that are not evaluated": 2,
            "not finite": 1,
            "outside [0, 1]": 1,
            "of images that are wrong without an attack": 1,
            "outside the ball": 1,
            "right answers": 1,
        }
        assert all(flag.name != "external" for flag in after.record.flags)
    channels_last = file(tmp_path / "c.npz", z.numpy().transpose(0, 2, 3, 1), index)
    after = weak(linear, digits, given=read_adversarials([channels_last]))
    assert dict(after.tallies[0].refused) == {"of shape 8x8x1, not 1x8x8": N}


def test_what_rounding_alone_put_outside_is_moved_in(linear: nn.Module, digits: Dataset, tmp_path: Path) -> None:
    z = found_by(linear, digits, "linf", "0.2")
    x, _ = digits.batch(slice(None))
    fell = (linear(z).argmax(1) != digits.labels).numpy()
    high = x + torch.tensor(0.2)
    out = torch.where(z == high, torch.nextafter(high, torch.tensor(2.0)), z)  # one step of float32 beyond
    assert (out > high).any()
    given = read_adversarials([file(tmp_path / "theirs.npz", out.numpy(), digits.indices.numpy())])
    after = weak(linear, digits, given=given)
    assert np.array_equal(after.fates.fell >= 0, fell | (weak(linear, digits).fates.fell >= 0))


def made_by(library: str, net: nn.Module, x: Tensor, y: Tensor, norm: str, eps: float) -> Tensor:
    """Images (n, C, H, W) of an attack of the library itself."""
    if library == "pyautoattack":
        attack = AutoAttack(net, norm=norm.title(), eps=eps, version="custom", attacks=["apgd-ce"])
        attack.apgd.n_iter = 10
        return attack.run_standard_evaluation(x, y)[0]
    module: Any = pytest.importorskip(library, reason=f"{library} is not installed")
    if library == "torchattacks":
        steps = {"eps": eps, "alpha": eps / 4, "steps": 10}
        return (module.PGD if norm == "linf" else module.PGDL2)(net, **steps)(x, y)
    attack = (module.attacks.LinfPGD if norm == "linf" else module.attacks.L2PGD)(steps=10)
    return attack(module.PyTorchModel(net, bounds=(0, 1), device="cpu"), x, y, epsilons=eps)[1]


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("library", ["pyautoattack", "torchattacks", "foolbox"])
@pytest.mark.filterwarnings("default")
def test_all_that_fools_of_other_libraries_images_counts(
    linear: nn.Module, digits: Dataset, library: str, norm: str, tmp_path: Path
) -> None:
    x, y = digits.batch(slice(None))
    eps = GRIDS[norm].split(",")[3]
    z = made_by(library, linear, x, y, norm, float(eps)).detach()
    given = read_adversarials([file(tmp_path / f"{library}.npz", z.numpy(), digits.indices.numpy())])
    after = weak(linear, digits, norm, given)
    fooled = (linear(z).argmax(1) != y).numpy() & after.fates.clean
    (tally,), (credit,) = after.tallies, after.record.external
    assert tally.verified == fooled.sum() > 5 and (after.fates.fell[fooled] >= 0).all()
    assert set(tally.refused) <= {"right answers", "of images that are wrong without an attack"}
    assert credit.name == library and credit.felled == tally.felled > 0


def test_images_are_read_as_other_libraries_lay_them_out(linear: nn.Module, digits: Dataset, tmp_path: Path) -> None:
    z, index = found_by(linear, digits, "linf", "0.2"), digits.indices
    paths = [
        file(tmp_path / "one.npz", z.numpy(), index.numpy()),
        file(tmp_path / "two.npz", z.double().numpy(), index.int().numpy(), ("adversarials", "indices")),
    ]
    both = read_adversarials(paths)
    assert [one.name for one in both] == ["one", "two"]
    first, second = (weak(linear, digits, given=(one,)) for one in both)
    assert np.array_equal(first.fates.fell, second.fates.fell)
    assert first.record.external[0].felled > 10
    together = weak(linear, digits, given=both)
    assert [one.felled for one in together.record.external] == [first.record.external[0].felled, 0]


@pytest.mark.usefixtures("started_by_fork")
def test_the_attacks_are_not_disturbed(linear: nn.Module, digits: Dataset, tmp_path: Path) -> None:
    given = read_adversarials(
        [file(tmp_path / "x.npz", found_by(linear, digits, "linf", "0.1").numpy(), digits.indices)]
    )
    for more in (
        {"attack": ["pgd", "square"], "attack_settings": {"steps": 3, "n_queries": 20}},
        {"attack": "fgsm", "attack_settings": {}},
    ):
        alone, after = weak(linear, digits, **more), weak(linear, digits, given=given, **more)
        unmoved = after.fates.by < len(after.record.attack)
        assert np.array_equal(alone.fates.fell[unmoved], after.fates.fell[unmoved]) and not unmoved.all()
        lowered = [low.robust <= high.robust for low, high in zip(after.record.curve, alone.record.curve, strict=True)]
        assert all(lowered) and after.record.auc < alone.record.auc and after.record.clean == alone.record.clean
        exact = weak(linear, digits, given=given, curve="exact", **more)
        assert (np.diff([point.robust for point in exact.record.curve]) <= 0).all()
    two = weak(linear, digits, given=given, processes=2, **more)
    assert two.record.id == after.record.id and np.array_equal(two.fates.by, after.fates.by)


def test_a_record_lowered_later_is_that_of_an_evaluation_with_the_files(
    linear: nn.Module, digits: Dataset, tmp_path: Path
) -> None:
    near, far = (found_by(linear, digits, "linf", eps) for eps in ("0.1", "0.2"))
    index = digits.indices.numpy()
    files = read_adversarials(
        [file(tmp_path / f"{n}.npz", z.numpy(), index) for n, z in (("far", far), ("near", near))]
    )
    was = weak(linear, digits)
    once = added(was.record, was.fates, files[:1], bare(linear, digits), digits)
    assert once.record.supersedes == was.record.id and once.record.model == was.record.model
    twice = added(once.record, once.fates, files[1:], bare(linear, digits), digits)
    at_once = weak(linear, digits, given=files)
    assert twice.record.id == at_once.record.id and twice.record.external == at_once.record.external
    assert [one.felled for one in twice.record.external] < [one.felled for one in once.record.external] + [N]
    (flag,) = (flag for flag in twice.record.flags if flag.name == "external")
    assert flag.severity == "note" and flag.k == sum(one.felled for one in twice.record.external) and flag.n == N
    kept, fates = load_record(twice.record.save(tmp_path, twice.fates))
    assert kept == twice.record and np.array_equal(fates.by, twice.fates.by)
    assert kept.environment.command == was.record.environment.command
    with pytest.raises(UserError, match=r"nothing falls further than in record .*, of which 0 lower the curve"):
        added(twice.record, twice.fates, files[:1], bare(linear, digits), digits)
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    with pytest.raises(UserError, match="answers otherwise than when record"):
        added(was.record, was.fates, files[:1], bare(other, digits), digits)


def test_proofs_are_kept_and_a_file_that_fells_a_proved_image_is_a_defect(
    linear: nn.Module, digits: Dataset, tmp_path: Path
) -> None:
    z = found_by(linear, digits, "linf", "0.2")
    given = read_adversarials([file(tmp_path / "z.npz", z.numpy(), digits.indices)])
    was, model = weak(linear, digits), bare(linear, digits)
    fell = added(was.record, was.fates, given, model, digits).fates.fell
    lowered = fell != was.fates.fell
    proved = np.where(fell > 0, fell - 1, -1)
    now = added(was.record, replace(was.fates, proved=proved), given, model, digits)
    assert np.array_equal(now.fates.proved, proved) and now.record.curve[0].certified == (proved >= 0).mean()
    proved[lowered] = fell[lowered]
    with pytest.raises(UserError, match=f"a defect of advbench: {lowered.sum()} images are proved to stand"):
        added(was.record, replace(was.fates, proved=proved), given, model, digits)


def test_the_nearest_point_becomes_nearer(linear: nn.Module, digits: Dataset, tmp_path: Path) -> None:
    """An attack that seeks the nearest point has sizes: a smaller one counts at the same eps too."""
    was, better = (
        evaluate(
            linear,
            digits,
            Settings(
                attack="fmn", attack_settings={"steps": steps}, eps=["0", "0.1", "1"], probes=False, keep_points=True
            ),
        )
        for steps in (4, 40)
    )
    z, (x, _) = better.adversarials, digits.batch(slice(None))
    given = read_adversarials([file(tmp_path / "z.npz", z.numpy(), digits.indices)])
    now = added(was.record, was.fates, given, bare(linear, digits), digits)
    assert was.fates.norm is not None and now.fates.norm is not None
    old, new = (np.nan_to_num(one.norm, nan=np.inf)[was.fates.clean] for one in (was.fates, now.fates))
    by_them = now.fates.by == len(now.record.attack)
    sizes = (z - x).abs().flatten(1).amax(1).numpy()
    assert by_them.any() and np.allclose(now.fates.norm[by_them], sizes[by_them], atol=1e-6)
    assert (new <= old).all() and (new < old).sum() == by_them.sum() > (now.fates.fell != was.fates.fell).sum()


class Noisy(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x + 0.05 * torch.randn_like(x))  # type: ignore[no-any-return]


def test_a_random_model_is_judged_by_the_same_draw(linear: nn.Module, digits: Dataset, tmp_path: Path) -> None:
    z = found_by(linear, digits, "linf", "0.2")
    given = read_adversarials([file(tmp_path / "z.npz", z.numpy(), digits.indices)])
    net = Noisy(linear)
    was = weak(net, digits)
    first, second = weak(net, digits, given=given), added(was.record, was.fates, given, bare(net, digits), digits)
    assert first.record.id == second.record.id == weak(net, digits, given=given).record.id
    unmoved = first.fates.by < len(first.record.attack)
    assert np.array_equal(first.fates.fell[unmoved], was.fates.fell[unmoved])


class Overflows(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x.amax((1, 2, 3))[:, None] == 0.987, torch.nan, self.net(x))


def test_an_overflow_counts_and_is_broken(linear: nn.Module, digits: Dataset, tmp_path: Path) -> None:
    net, (x, _) = Overflows(linear), digits.batch(slice(None))
    z = x.clamp_max(0.987)
    given = read_adversarials([file(tmp_path / "z.npz", z.numpy(), digits.indices)])
    after = weak(net, digits, given=given)
    assert after.record.external[0].felled > 10
    assert [flag.severity for flag in after.record.flags if flag.name == "non-finite-attacked"] == ["broken"]


def test_the_question_has_the_files(linear: nn.Module, digits: Dataset, tmp_path: Path) -> None:
    z = found_by(linear, digits, "linf", "0.1").numpy()
    one, two = read_adversarials([file(tmp_path / f"{n}.npz", z[:n], digits.indices[:n]) for n in (N, N - 1)])
    settings = [
        Settings(attack="fgsm", probes=False, eps=["0.1"], adversarials=given)
        for given in ((), (one,), (two,), (one, two))
    ]
    assert len({check(linear, digits, one) for one in settings}) == 4
    made = [evaluate(linear, digits, one) for one in settings]
    assert len({result.record.question for result in made}) == 4
    for asked in settings:
        run, _ = planned(linear, digits, asked)
        matching = [
            answers(result.record, question_of(bare(linear, digits), digits, asked, run, result.record.engine.slots))
            for result in made
        ]
        assert matching == [other is asked for other in settings]


def test_what_a_record_says_of_files_is_verified(linear: nn.Module, digits: Dataset, tmp_path: Path) -> None:
    given = read_adversarials(
        [file(tmp_path / "z.npz", found_by(linear, digits, "linf", "0.2").numpy(), digits.indices)]
    )
    result = weak(linear, digits, given=given)
    record, fates = result.record, result.fates
    (external,) = record.external
    assert record.felled_by == ["square", "external:z"]
    more = record.model_copy(update={"external": (external.model_copy(update={"felled": external.felled + 1}),)})
    with pytest.raises(UserError, match="what z felled is not what the fates say"):
        more.verify(fates)
    other = record.model_copy(update={"external": (external.model_copy(update={"sha256": "0" * 64}),)})
    with pytest.raises(UserError, match="its question is not the hash of its parts"):
        other.verify(fates)
    with pytest.raises(UserError, match="an index lies beyond"):
        record.model_copy(update={"external": ()}).verify(fates)


def test_fates_can_only_be_lowered() -> None:
    fates = Fates([0, 0, 1, 2, -1, -1], [-1, 0, 0, 1, -1, -1])
    nowhere = np.full(6, np.inf)
    lower = fates.lowered(7, np.array([1, 1, 2, 1, 2, NEVER]), nowhere)
    assert lower.fell.tolist() == [0, 0, 1, 1, 2, -1] and lower.by.tolist() == [-1, 0, 0, 7, 7, -1]
    sizes = Fates(fates.fell, fates.by, [0, 0.1, 0.2, 0.4, np.nan, np.nan])
    nearer = sizes.lowered(7, np.array([1, 1, 1, 2, 2, NEVER]), np.array([0.1, 0.05, 0.1, 0.4, 0.3, np.inf]))
    assert nearer.by.tolist() == [-1, 0, 7, 1, 7, -1] and nearer.fell.tolist() == [0, 0, 1, 2, 2, -1]
    assert nearer.norm is not None and nearer.norm[:5].tolist() == [0, 0.1, 0.1, 0.4, 0.3]


def test_names(tmp_path: Path) -> None:
    x = np.zeros((1, 1, 8, 8), np.float32)
    paths = []
    for number, name in enumerate(("a/examples.npz", "b/examples.npz", "c/my images.npz")):
        (tmp_path / name).parent.mkdir()
        paths.append(file(tmp_path / name, x + number / 10, [0]))
    assert [one.name for one in read_adversarials(paths)] == ["examples", "examples-2", "my_images"]
    (tmp_path / "again.npz").write_bytes(paths[1].read_bytes())
    with pytest.raises(UserError, match=r"again\.npz holds the adversarial images of examples-2 again"):
        read_adversarials([*paths, tmp_path / "again.npz"])


GOOD = np.zeros((3, 1, 8, 8), np.float32)


def saved(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def alone(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


NO_FILES: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "text": lambda: b"x_adv,index\n",
    "one array": lambda: alone(GOOD),
    "a pickle": lambda: saved(x_adv=np.array([{}], dtype=object), index=[0]),
    "no index": lambda: saved(x_adv=GOOD),
    "no images": lambda: saved(index=[0, 1, 2]),
    "no rows": lambda: saved(x_adv=GOOD[:0], index=np.zeros(0, int)),
    "bytes": lambda: saved(x_adv=GOOD.astype(np.uint8), index=[0, 1, 2]),
    "complex": lambda: saved(x_adv=GOOD.astype(complex), index=[0, 1, 2]),
    "flat": lambda: saved(x_adv=GOOD.reshape(3, 64), index=[0, 1, 2]),
    "too few positions": lambda: saved(x_adv=GOOD, index=[0, 1]),
    "positions in a column": lambda: saved(x_adv=GOOD, index=[[0], [1], [2]]),
    "fractions": lambda: saved(x_adv=GOOD, index=[0.0, 1.0, 2.0]),
    "truth values": lambda: saved(x_adv=GOOD, index=[True, False, True]),
    "cut off": lambda: saved(x_adv=GOOD, index=[0, 1, 2])[:-100],
}


@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_no_such_file(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "theirs.npz"
    path.write_bytes(NO_FILES[kind]())
    with pytest.raises(UserError, match=r"is no file of adversarial images.*: what is needed is an \.npz") as raised:
        read_adversarials([path])
    assert "\n" not in str(raised.value) and "x_adv (N, C, H, W)" in str(raised.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        read_adversarials([tmp_path / "none.npz"])


def test_corruptions_have_no_ball(linear: nn.Module, digits: Dataset, tmp_path: Path) -> None:
    given = read_adversarials([file(tmp_path / "z.npz", GOOD, [0, 1, 2])])
    with pytest.raises(UserError, match="no perturbations in a ball: leave out --adversarials"):
        Settings(attack="corruptions", norm="corruptions", eps=["0", "1"], adversarials=given)


def test_in_python(linear: nn.Module, tmp_path: Path) -> None:
    data = load("digits", "test").subset(range(40))
    path = file(tmp_path / "theirs.npz", found_by(linear, data, "linf", "0.1").numpy(), data.indices)
    result = advbench.evaluate(
        linear,
        "digits",
        n=40,
        attack="square",
        eps=[0, 0.1],
        settings={"n_queries": 1},
        adversarials=path,
        keep_points=True,
    )
    by_them = result.fates.by == 1
    assert result.record.external[0].felled == by_them.sum() > 0
    assert bool(result.found[torch.from_numpy(by_them)].all())
    fooled = linear(result.adversarials).argmax(1) != data.labels
    assert bool(fooled[torch.from_numpy(by_them)].all())
    with pytest.raises(UserError, match="adversarials is 3"):
        advbench.evaluate(linear, "digits", n=4, adversarials=3)  # type: ignore[arg-type]
