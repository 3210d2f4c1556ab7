"""The search copy: equal logits and gradients, BatchNorms folded where allowed, the original untouched."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advbench.checkpoint import weights_sha256
from advbench.engine.search_copy.copy import prepacked, search_copy
from advbench.models import architectures, build, settings_of, wrap
from advbench.models.base import Model, straight_through
from advbench.registry import find


def trained(arch: str) -> Model:
    """A network in train mode whose BatchNorms have random weights and statistics."""
    known = settings_of(find("models", arch))
    small = {"widen": 1, "depth": 10} if "widen" in known else {"width": 8} if "width" in known else {}
    net = build(arch, num_classes=10, in_channels=3, image_size=32, seed=0, **small)
    generator = torch.Generator().manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.weight.data, module.running_var):
                values.uniform_(0.5, 2.0, generator=generator)
            for values in (module.bias.data, module.running_mean):
                values.normal_(generator=generator)
    return net


@pytest.mark.parametrize("arch", sorted(architectures()))
def test_logits_and_input_gradients_agree_and_the_original_is_untouched(arch: str) -> None:
    net = trained(arch)
    digest, modes = weights_sha256(net), [module.training for module in net.modules()]
    twin, notes = search_copy(net)
    assert weights_sha256(net) == digest and [module.training for module in net.modules()] == modes
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert not any(parameter.requires_grad for parameter in twin.parameters())
    assert not any(module.training for module in twin.modules())
    assert not any("not folded" in note for note in notes), notes
    net.eval()
    x = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(2), requires_grad=True)
    wanted, got = net(x), twin(x)
    scale = wanted.abs().max().clamp(min=1)
    assert ((wanted - got).abs().max() / scale) < 1e-4
    (g1,), (g2,) = (torch.autograd.grad(logits.logsumexp(1).sum(), x) for logits in (wanted, got))
    assert torch.allclose(g1, g2, rtol=1e-3, atol=1e-4 * float(g1.abs().max()))


def count(net: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in net.modules())


def test_what_is_folded() -> None:
    plain, notes = search_copy(trained("resnet18"))
    assert count(plain) == 0 and notes[0].startswith("20 BatchNorm folded into convolutions")
    pre, notes = search_copy(trained("preact_resnet18"))
    assert count(pre) == 9  # the first one of each of the 8 blocks and the last one follow no convolution
    assert notes[0].startswith("9 BatchNorm kept") and notes[1].startswith("8 BatchNorm folded")


def test_layout_and_precision() -> None:
    net = trained("resnet18")
    twin, _ = search_copy(net, dtype=torch.bfloat16)
    weights = twin.net.get_submodule("layer1.0.conv1").weight
    assert isinstance(weights, Tensor)
    assert weights.dtype == torch.bfloat16 and weights.is_contiguous(memory_format=torch.channels_last)
    x = torch.rand(2, 3, 32, 32)
    logits = twin(x)
    assert logits.dtype == torch.float32
    assert (logits - net.eval()(x)).abs().max() / logits.abs().max() < 0.1
    contiguous, _ = search_copy(net, channels_last=False)
    assert contiguous.net.get_submodule("layer1.0.conv1").weight.is_contiguous()  # type: ignore[operator, union-attr]


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() < 0:
            return x
        return self.bn(self.conv(x)).mean((2, 3))  # type: ignore[no-any-return]


class Peeking(nn.Module):
    """Folding would change it: it reads the convolution's output twice, or (`weight`) its weight by name."""

    def __init__(self, weight: bool) -> None:
        super().__init__()
        self.conv, self.bn, self.weight = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), weight
        nn.init.constant_(self.bn.weight, 3.0)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        z = self.bn(h)
        return (z + self.conv.weight.sum() if self.weight else z + h).mean((2, 3))  # type: ignore[no-any-return]


X = torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(0))


def test_a_model_that_cannot_be_traced_is_copied_as_it_is() -> None:
    net = Untraceable()
    twin, notes = search_copy(net, channels_last=False, example=X)
    assert len(notes) == 1 and notes[0].startswith("BatchNorm not folded: the model cannot be traced (TraceError")
    assert torch.equal(twin(X), net.eval()(X))


def test_a_convolution_seen_by_others_is_not_folded() -> None:
    net = Peeking(weight=False)
    twin, notes = search_copy(net, example=X)
    assert notes == ["1 BatchNorm kept: not preceded by a convolution that nothing else reads"]
    assert torch.allclose(twin(X), net.eval()(X))


def test_a_fold_that_changes_logits_is_undone() -> None:
    net = Peeking(weight=True)
    twin, notes = search_copy(net, example=X)
    assert len(notes) == 1 and notes[0].startswith("BatchNorm not folded: logits would differ by")
    assert torch.allclose(twin(X), net.eval()(X))


def test_nothing_is_folded_unchecked() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
    _, notes = search_copy(net)
    assert notes == ["BatchNorm not folded: no example input to check the folded copy with"]


class Noisy(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.randn(1)  # type: ignore[no-any-return]


def test_a_random_model_is_searched_as_it_is_and_the_global_generator_left_alone() -> None:
    net = Noisy(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
    before = torch.get_rng_state()
    twin, notes = search_copy(net, example=X)
    assert notes == [notes[0]] and notes[0].startswith("searched as it is: a faster copy fails (logits differ by")
    assert [type(module) for module in twin.modules()][1:] == [type(module) for module in net.modules()]
    assert torch.equal(torch.get_rng_state(), before)


def test_a_convolution_with_a_hook_is_not_folded() -> None:
    net = trained("resnet18")
    net.get_submodule("conv1").register_forward_hook(lambda _m, _i, out: F.relu(out))
    twin, notes = search_copy(net)
    assert notes[0].startswith("1 BatchNorm kept") and notes[1].startswith("19 BatchNorm folded")
    x = torch.rand(2, 3, 32, 32)
    assert torch.allclose(twin(x), net.eval()(x), atol=1e-4)


def test_a_quantised_layer_keeps_its_switch() -> None:
    wrapped = wrap(trained("resnet18"), "quantize", layer="conv1", levels=8).eval()
    twin, notes = search_copy(wrapped)
    assert notes[0].startswith("1 BatchNorm kept") and notes[1].startswith("19 BatchNorm folded")
    x = torch.rand(2, 3, 32, 32, requires_grad=True)
    with straight_through(twin) as layers:
        assert layers == 1
        (passed,) = torch.autograd.grad(twin(x).sum(), x)
    (blocked,) = torch.autograd.grad(twin(x).sum(), x)
    assert blocked.abs().sum() == 0 < passed.abs().sum()


@pytest.mark.parametrize(("arch", "channels", "side"), [("lenet5", 1, 28), ("small_cnn_16_32_100", 1, 28)])
def test_forward_passes_without_gradient_are_prepacked_with_equal_logits(arch, channels, side):
    net = build(arch, num_classes=10, in_channels=channels, image_size=side, seed=0).eval()
    copy, _ = search_copy(net)
    x = torch.rand(6, channels, side, side, generator=torch.Generator().manual_seed(3))
    assert prepacked(net, x) is not None
    with torch.no_grad():
        quick = copy(x)
        assert torch.equal(quick, copy(x))
        assert torch.equal(copy(x[[0, 1, 2, 0, 0, 0]])[:3], quick[:3])  # no row depends on its neighbours
    assert torch.allclose(quick, copy(x.requires_grad_()), atol=1e-5)
    assert torch.allclose(quick, net(x), atol=1e-4)


def test_models_that_cannot_be_recorded_are_not_prepacked():
    class Branching(nn.Module):
        """Negates its output for bright inputs."""

        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3)

        def forward(self, x):
            z = self.conv(x).mean((2, 3))
            return -z if bool(x.mean() > 0.9) else z

    class Noisy(Branching):
        def forward(self, x):
            return self.conv(x + torch.rand_like(x)).mean((2, 3))

    x = torch.rand(4, 1, 6, 6)
    for net in (Noisy(), nn.Sequential(nn.Flatten(), nn.Linear(36, 2))):
        assert prepacked(net.eval(), x) is None
    bright = torch.ones(4, 1, 6, 6)
    net = Branching().eval()
    copy, _ = search_copy(net, example=x)
    with torch.no_grad():
        copy(x)
        assert torch.allclose(copy(bright), net(bright), atol=1e-6)
    assert not copy.traceable


@pytest.mark.parametrize("arch", ["lenet5", "small_cnn", "small_cnn_16_32_100", "mlp", "linear"])
def test_a_rows_results_do_not_depend_on_its_place(arch: str) -> None:
    """To the bit, for logits without gradient, logits with gradient, and the gradient."""
    net = build(arch, num_classes=10, in_channels=1, image_size=28, seed=0).eval()
    copy, _ = search_copy(net)
    x = torch.rand(48, 1, 28, 28, generator=torch.Generator().manual_seed(3))

    def results(x):
        with torch.no_grad():
            quick = copy(x)
        z = x.clone().requires_grad_()
        logits = copy(z)
        return quick, logits.detach(), torch.autograd.grad(logits.square().sum(), z)[0]

    ours = results(x)
    for order in (torch.arange(48).roll(1), torch.randperm(48, generator=torch.Generator().manual_seed(1))):
        assert all(torch.equal(here[order], there) for here, there in zip(ours, results(x[order]), strict=True))


def test_a_recording_that_rounds_by_a_rows_place_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's own recording of linear layers does so on some CPUs."""
    net = build("small_cnn_16_32_100", num_classes=10, in_channels=1, image_size=28, seed=0).eval()
    x = torch.rand(4, 1, 28, 28)
    assert prepacked(net, x) is not None
    monkeypatch.setattr(
        torch.jit, "optimize_for_inference", lambda made: lambda x: made(x) * (1 + 1e-6 * torch.arange(len(x))[:, None])
    )
    assert prepacked(net, x) is None


class Rewritten(nn.Conv2d):
    """A faulty rewrite: an error in the forward or backward pass, other logits, or other gradients."""

    fault = ""

    def __init__(self, conv: nn.Conv2d) -> None:
        nn.Module.__init__(self)
        vars(self).update(vars(conv))

    @staticmethod
    def fits(conv: nn.Conv2d) -> bool:
        return True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = super().forward(x)
        match self.fault:
            case "forward":
                raise RuntimeError("no kernel for this")
            case "backward":
                out.register_hook(lambda grad: grad.no_such_attribute)
            case "logits":
                out = out + 0.1
            case "nan":
                out = out * torch.nan
            case "gradients":
                out = out.detach() + 0 * out
        return out


@pytest.mark.parametrize("fault", ["forward", "backward", "logits", "nan", "gradients"])
def test_a_faulty_rewrite_is_discarded(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10)).eval()
    monkeypatch.setattr("advbench.engine.search_copy.copy.NarrowConv2d", Rewritten)
    monkeypatch.setattr(Rewritten, "fault", fault)
    x = torch.rand(3, 1, 8, 8)
    twin, notes = search_copy(net, example=x)
    assert len(notes) == 1 and notes[0].startswith("searched as it is: a faster copy fails (")
    z = x.clone().requires_grad_()
    twin(z).sum().backward()
    w = x.clone().requires_grad_()
    net(w).sum().backward()
    assert torch.equal(twin(x), net(x)) and torch.equal(z.grad, w.grad)
