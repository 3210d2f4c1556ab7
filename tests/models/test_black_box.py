"""Classifiers that are no nn.Module: what they take and answer, their classes, ties, identity, and what is refused."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, Perceptron
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC
from torch import Tensor, nn

import advbench
from advbench.checkpoint import code_sha256, load_model, weights_sha256
from advbench.data.tensors import from_tensors
from advbench.errors import UserError
from advbench.models.black_box import black_box, is_black_box
from advbench.models.digest import digest

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
W = np.random.default_rng(0).normal(size=(64, 10))


@pytest.fixture(scope="module")
def rows() -> tuple[np.ndarray, np.ndarray]:
    data = advbench.load_data("digits", "train")
    x, y = data.batch(slice(0, 600))
    return x.flatten(1).double().numpy(), y.numpy()


@pytest.fixture(scope="module")
def images() -> Tensor:
    data = advbench.load_data("digits")
    return data.batch(slice(0, 64))[0]


class Plain:
    """A predictor with only the methods that it is given."""

    def __init__(self, **methods: Callable[[Any], Any]) -> None:
        vars(self).update(methods)


def linear_rows(x: np.ndarray) -> np.ndarray:
    assert isinstance(x, np.ndarray) and x.ndim == 2, "rows are needed"
    return x @ W


def linear_nchw(x: np.ndarray) -> np.ndarray:
    assert x.shape[1:] == (1, 8, 8), "channels come first"
    return x.reshape(len(x), -1) @ W


def linear_nhwc(x: np.ndarray) -> np.ndarray:
    assert x.shape[1:] == (8, 8, 1), "channels come last"
    return x.reshape(len(x), -1) @ W


def linear_tensor(x: Tensor) -> Tensor:
    return x.flatten(1) @ torch.from_numpy(W).float()


def linear_in_place(x: np.ndarray) -> np.ndarray:
    flat = x.reshape(len(x), -1)
    flat *= 2.0
    return flat @ W / 2


@pytest.mark.parametrize(
    "subject",
    [
        linear_tensor,
        linear_nchw,
        linear_in_place,
        partial(linear_nchw),
        Plain(decision_function=linear_rows),
        Plain(decision_function=linear_nchw),
        Plain(decision_function=linear_nhwc),
        Plain(decision_function=linear_tensor),
        Plain(predict=linear_nchw),
    ],
)
def test_images_are_given_in_the_form_that_is_taken(subject: Any, images: Tensor) -> None:
    before = images.clone()
    logits = black_box(subject, 10)(images)
    assert torch.equal(images, before)
    assert logits.dtype == torch.float32 and not logits.requires_grad
    np.testing.assert_allclose(logits.numpy(), images.flatten(1).double().numpy() @ W, rtol=1e-4, atol=1e-4)


def test_what_no_form_suits_is_refused_in_one_line(images: Tensor) -> None:
    def picky(x: Any) -> Any:
        raise ValueError("colour\nimages only")

    for subject in (picky, Plain(predict=picky)):
        message = r"takes the images in no form \(.*ValueError: colour images only \[test_black_box.py line \d+\]\)"
        with pytest.raises(UserError, match=message) as caught:
            black_box(subject, 10)(images)
        assert "\n" not in str(caught.value)


def test_what_fails_later_ends_in_one_line_too(images: Tensor) -> None:
    calls = 0

    def tired(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > 3:
            raise OSError("connection\nlost")
        return linear_tensor(x)

    with pytest.raises(UserError, match="tired failed: OSError: connection lost") as caught:
        advbench.evaluate(tired, "digits", attack="square", eps=["0.1"], n=8)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "logits"),
    [
        (np.array([0.5, -1.5]), [[0, 0.5], [0, -1.5]]),
        (torch.tensor([[0.5], [-1.5]]), [[0, 0.5], [0, -1.5]]),
        (np.array([2, 0]), [[0, 0, 1], [1, 0, 0]]),
        (torch.tensor([2, 0]), [[0, 0, 1], [1, 0, 0]]),
        (np.array([[1, 2, 3], [4, 5, 6]]), [[1, 2, 3], [4, 5, 6]]),
    ],
)
def test_answers_of_a_function(answer: Any, logits: list[list[float]]) -> None:
    net = black_box(lambda x: answer, 3)
    assert net(torch.zeros(2, 1, 2, 2)).tolist() == logits


@pytest.mark.parametrize("answer", [np.array([3, 0]), np.array([-1, 0]), np.array(["a", "b"])])
def test_labels_that_are_no_classes_are_refused(answer: np.ndarray) -> None:
    with pytest.raises(UserError, match="a label is an integer from 0 to 2"):
        black_box(Plain(predict=lambda x: answer), 3)(torch.zeros(2, 1, 2, 2))


@pytest.mark.parametrize(
    "predictor",
    [
        RandomForestClassifier(5, max_depth=3, random_state=0),
        RandomForestClassifier(2, max_depth=1, random_state=0),  # many ties
        LogisticRegression(max_iter=20),
        SVC(),
        SVC(decision_function_shape="ovo"),
        Perceptron(),
        KNeighborsClassifier(3),
        DummyClassifier(strategy="prior"),
    ],
    ids=str,
)
def test_the_largest_logit_is_what_predict_says(predictor: Any, rows: Any, images: Tensor) -> None:
    predictor = copy.deepcopy(predictor).fit(*rows)
    for x in (images, torch.rand(256, 1, 8, 8, generator=torch.Generator().manual_seed(0))):
        logits = black_box(predictor, 10)(x)
        assert logits.shape == (len(x), 10) and bool(logits.isfinite().all())
        assert logits.argmax(1).tolist() == predictor.predict(x.flatten(1).double().numpy()).tolist()
        two = logits.topk(2).values
        assert bool((two[:, 0] > two[:, 1]).all())  # no ties are left, which kernels could break in two ways


def test_probabilities_give_logarithms_that_distinguish_small_ones() -> None:
    p = np.array([[1.0, 0.0, 0.0], [1 - 3e-20, 2e-20, 1e-20]])
    logits = black_box(Plain(predict_proba=lambda x: p), 3)(torch.zeros(2, 1, 2, 2))
    assert logits[0].isfinite().all() and logits[0, 1] == logits[0, 2]
    np.testing.assert_allclose(logits[1, 1:].exp().numpy(), p[1, 1:], rtol=1e-4)


@pytest.mark.parametrize("names", [int, str, float, "class {}".format], ids=["int", "str", "float", "words"])
def test_columns_are_placed_by_their_class(names: Callable[[int], Any], rows: Any, images: Tensor) -> None:
    x, y = rows
    plain = LogisticRegression(max_iter=20).fit(x, y) if names is int else None
    named = LogisticRegression(max_iter=20).fit(x, np.array([names(one) for one in y]))
    found = black_box(named, 10)(images)
    expected = (plain or LogisticRegression(max_iter=20).fit(x, y)).decision_function(
        images.flatten(1).double().numpy()
    )
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-3, atol=1e-3)


def test_a_class_that_the_predictor_never_saw_has_the_lowest_logit(rows: Any, images: Tensor) -> None:
    x, y = rows
    seen = np.isin(y, [0, 3, 9])
    logits = black_box(RandomForestClassifier(5, random_state=0).fit(x[seen], y[seen]), 10)(images)
    assert logits.shape == (64, 10) and set(logits.argmax(1).tolist()) <= {0, 3, 9}
    known = logits[:, [0, 3, 9]].amin(1)
    others = logits[:, [1, 2, 4, 5, 6, 7, 8]]
    assert bool((others < known[:, None]).all()) and bool(logits.isfinite().all())


def test_two_classes_have_one_score_in_scikit_learn(rows: Any, images: Tensor) -> None:
    x, y = rows
    two = LogisticRegression().fit(x[y < 2], y[y < 2])
    logits = black_box(two, 2)(images)
    assert logits.shape == (64, 2)
    assert logits.argmax(1).tolist() == two.predict(images.flatten(1).double().numpy()).tolist()


def test_names_that_are_no_numbers_must_be_as_many_as_the_classes(rows: Any) -> None:
    x, y = rows
    words = LogisticRegression(max_iter=5).fit(x[y < 3], np.array(["ape", "bee", "cat"])[y[y < 3]])
    with pytest.raises(UserError, match=r"has the classes ape, bee, cat, ...: the images have 10"):
        black_box(words, 10)


WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def test_names_are_placed_as_the_images_name_their_classes(rows: Any) -> None:
    """scikit-learn sorts them by the alphabet, other than by label."""
    x, y = rows
    words = LogisticRegression(max_iter=20).fit(x, np.array(WORDS)[y])
    images = from_tensors(x[:200].reshape(-1, 8, 8), y[:200], class_names=WORDS)
    assert advbench.evaluate(words, images, attack="square", eps=["0"]).record.clean > 0.9
    fewer = LogisticRegression(max_iter=20).fit(x[y > 6], np.array(WORDS)[y[y > 6]])
    logits = black_box(fewer, 10, class_names=WORDS)(images.images[:200].float() / 16)
    assert set(logits.argmax(1).tolist()) == {7, 8, 9}
    with pytest.raises(UserError, match=r"has the class 'eight': the images have ape, bee, cat$"):
        black_box(fewer, 3, class_names=("ape", "bee", "cat"))


@pytest.mark.parametrize("thing", [3, "text", None, RandomForestClassifier, object()])
def test_what_is_no_model_is_refused(thing: Any) -> None:
    with pytest.raises(UserError, match=r"a model is a torch.nn.Module, a function of a batch of images, or an object"):
        black_box(thing)
    with pytest.raises(UserError, match=r"a model is a torch.nn.Module"):
        advbench.evaluate(thing if not isinstance(thing, str) else 3, "digits", attack="square", eps=["0"], n=8)


def test_a_module_is_itself_and_a_part_makes_a_black_box() -> None:
    net = nn.Flatten()
    assert black_box(net) is net and not is_black_box(net)
    assert is_black_box(nn.Sequential(black_box(linear_tensor), nn.Identity()))


# Identity


def test_predictors_differ_by_what_they_contain(rows: Any, images: Tensor) -> None:
    one, same, other = (RandomForestClassifier(3, random_state=seed).fit(*rows) for seed in (0, 0, 1))
    nets = [black_box(subject, 10) for subject in (one, same, pickle.loads(pickle.dumps(one)), other)]
    nets[0](images)  # asking changes nothing
    names = [weights_sha256(net) for net in nets]
    assert names[0] == names[1] == names[2] != names[3]


FITTED = """
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
fitted = RandomForestClassifier(3, random_state=0, class_weight="balanced").fit(*load_digits(return_X_y=True))
"""


def test_the_digest_is_the_same_in_every_process() -> None:
    here: dict[str, Any] = {}
    exec(FITTED, here)
    there = subprocess.run(
        [sys.executable, "-c", f"{FITTED}\nfrom advbench.models.digest import digest\nprint(digest(fitted).hex())"],
        env={**os.environ, "PYTHONHASHSEED": "1"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = digest(here["fitted"])
    assert found is not None and there.stdout.strip() == found.hex()


def around(value: Any) -> Callable[[Any], Any]:
    return lambda x: linear_nchw(x) * (value if isinstance(value, float) else 1.0)


def test_functions_differ_by_what_they_hold_on_to() -> None:
    torch.manual_seed(0)
    nets = [nn.Linear(2, 2) for _ in range(2)]
    values = [1.0, 2.0, *nets, np.zeros(3), np.ones(3), torch.zeros(3, dtype=torch.bfloat16), torch.zeros(3)]
    found = [digest(around(value)) for value in values]
    assert None not in found and len(set(found)) == len(values)
    assert digest(around(copy.deepcopy(nets[0]))) == digest(around(nets[0]))
    assert digest(around(np.asfortranarray(np.eye(3)))) == digest(around(np.eye(3)))
    inner = [digest(partial(linear_nchw, around(value))) for value in nets]  # by what it binds
    outer = [digest(wrapped(around(value))) for value in nets]  # by what is around a function around it
    assert len({*found, *inner, *outer}) == len(values) + 4
    with open(os.devnull) as held:
        assert digest(held) is None
        assert None is not digest(wrapped(held)) != digest(wrapped(nets[0]))


def wrapped(inner: Any) -> Callable[[Any], Any]:
    def again(x: Any, times: int = 1) -> Any:
        return inner(x) if times == 0 else again(x, times - 1)

    return again


def test_the_code_of_a_function_is_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    hashes = []
    for number, factor in enumerate((1, 2)):
        name = f"function_{abs(hash(tmp_path))}_{number}"
        (tmp_path / f"{name}.py").write_text(f"def f(x):\n    return x.flatten(1)[:, :10] * {factor}\n")
        loaded = load_model(f"{name}:f", dataset="digits")
        assert loaded.outside and loaded.code_sha256 == code_sha256(loaded.net, "")
        hashes.append(loaded.code_sha256)
    assert hashes[0] != hashes[1]


def test_copies_share_what_cannot_be_copied(images: Tensor) -> None:
    with open(os.devnull) as held:

        class Remote:
            def __init__(self) -> None:
                self.connection = held

            def predict_proba(self, x: np.ndarray) -> np.ndarray:
                return np.full((len(x), 10), 0.1)

        net = black_box(Remote(), 10)
        assert torch.equal(copy.deepcopy(net)(images), net(images))
        found = advbench.evaluate(
            net, "digits", attack="square", eps=["0.1"], n=8, probes=False, settings={"n_queries": 2}
        )
    assert found.record.model.spec == "python:Remote"


# Attacks


def test_the_verdicts_are_those_of_the_differentiable_twin() -> None:
    torch.manual_seed(0)
    data = advbench.load_data("digits", "train")
    x, y = data.batch(slice(0, 600))
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    optim = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(60):
        optim.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optim.step()
    net.eval()
    weight, bias = net[1].weight.detach().numpy(), net[1].bias.detach().numpy()  # type: ignore[union-attr]
    models = (net, lambda x: net(x), lambda x: x.reshape(len(x), -1) @ weight.T + bias)
    how: dict[str, Any] = {"attack": ["square", "rays"], "eps": ["0", "0.05", "0.1"], "n": 64}
    found = [advbench.evaluate(model, "digits", **how, settings={"n_queries": 100}) for model in models]
    fell = [one.fates.fell for one in found]
    assert (fell[0] >= 0).any() and (fell[0] == -1).any()
    assert np.array_equal(fell[0], fell[1])
    assert (fell[0] != fell[2]).sum() <= 1  # NumPy rounds in another order
    for one in found[1:]:
        assert not [flag for flag in one.record.flags if flag.decides()]


@pytest.mark.parametrize("attack", ["autoattack", "pgd", "fab", "deepfool", ["square", "apgd-ce"]])
def test_attacks_that_follow_gradients_are_refused(attack: Any) -> None:
    with pytest.raises(
        UserError, match=r"black box: it has no gradient, which .*attack square or rays or hopskipjump, or wrap"
    ):
        advbench.evaluate(linear_tensor, "digits", attack=attack, eps=["0", "0.1"], n=8)
    with pytest.raises(UserError, match=r"choose attack square or hopskipjump$"):
        advbench.evaluate(
            Plain(decision_function=linear_rows), "digits", attack="pgd", norm="l2", eps=["0", "0.5"], n=8
        )


def test_precision_is_fp32_whatever_is_asked() -> None:
    how: dict[str, Any] = {"attack": "square", "eps": ["0", "0.1"], "n": 8, "settings": {"n_queries": 2}}
    found = advbench.evaluate(linear_tensor, "digits", precision="bf16", **how)
    assert found.record.engine.precision == "fp32"


def test_transfer_to_a_black_box_works_and_from_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"nets_{abs(hash(tmp_path))}"
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"{name}.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
        "def f(x):\n    return x.flatten(1)[:, :10]\n"
    )
    how: dict[str, Any] = {"attack": "transfer", "eps": ["0", "0.1"], "n": 16}
    found = advbench.evaluate(linear_tensor, "digits", settings={"source": f"{name}:net", "steps": 2}, **how)
    assert not {"zero-gradient", "nan-gradient"} & {flag.name for flag in found.record.flags}
    with pytest.raises(UserError, match=r"the source .* is a black box: it has no gradient to search with"):
        advbench.evaluate(linear_tensor, "digits", settings={"source": f"{name}:f", "steps": 2}, **how)


def test_a_part_that_is_a_black_box_is_named_and_evaluated() -> None:
    net = nn.Sequential(black_box(linear_tensor), nn.Softmax(1))
    found = advbench.evaluate(net, "digits", attack="square", eps=["0.1"], n=8, probes=False, settings={"n_queries": 2})
    assert found.record.model.spec == "python:Sequential"
    with pytest.raises(UserError, match="python:Sequential is a black box: it has no gradient"):
        advbench.evaluate(net, "digits", attack="pgd", eps=["0.1"], n=8)


def test_processes_share_the_images_of_a_predictor(rows: Any) -> None:
    forest = RandomForestClassifier(3, random_state=0).fit(*rows)
    how: dict[str, Any] = {"attack": "square", "eps": ["0", "0.1"], "n": 32, "settings": {"n_queries": 10}}
    one, two = (advbench.evaluate(forest, "digits", **how, probes=False, processes=count) for count in (1, 2))
    assert np.array_equal(one.fates.fell, two.fates.fell)
    assert one.record.question == two.record.question
