"""Threat models: the set of inputs around each sample from which an attack may choose.

A region is a norm's balls around samples, cut to [0, 1]: `around("linf", x, eps)` for x (S, C, H, W) float32 in [0, 1]
and eps (S,) float64. Norms run over all of C, H, W, except the Fourier norm (Faghri et al. 2021, arXiv:2102.08868): the
largest modulus of the unitary 2-D DFT of any channel.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from advbench import rng
from advbench.errors import UserError, unknown
from advbench.roots import falling, rising

_TINY = 1e-12
_MAX_FOURIER_ROUNDS = 16
_MAX_ROUNDS = 5  # of L2.project; further rounds change less than a thousandth of eps (tests/test_threat.py)


@dataclass
class Region:
    """Balls of size `eps` (S,) around `x` (S, C, H, W), cut to [0, 1]; `low` and `high` bound each element."""

    norm: ClassVar[str]
    x: Tensor
    eps: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def around(cls, x: Tensor, eps: Tensor) -> Self:
        """The regions of samples x (S, C, H, W) in [0, 1] and sizes eps (S,)."""
        return cls(x, eps.double(), torch.zeros_like(x), torch.ones_like(x))

    @property
    def e(self) -> Tensor:
        """eps as (S, 1, 1, 1) in the dtype of x."""
        return self.eps.to(self.x.dtype).view(-1, 1, 1, 1)

    def project(self, z: Tensor) -> Tensor:
        """A point of the region for each z (S, C, H, W): z itself if it lies inside, else the nearest or one near z."""
        raise NotImplementedError

    def steepest(self, g: Tensor) -> Tensor:
        """The direction d (S, C, H, W) of norm 1 that maximises <g, d>, which is then dual(g). Zero if g is zero."""
        raise NotImplementedError

    def sample(self, key: Tensor) -> Tensor:
        """A random point of the region for each key (S,)."""
        raise NotImplementedError

    def size(self, d: Tensor) -> Tensor:
        """The norm (S,) of perturbations d (S, C, H, W), in the dtype of d."""
        raise NotImplementedError

    def dual(self, g: Tensor) -> Tensor:
        """The dual norm (S,) of gradients g (S, C, H, W)."""
        raise NotImplementedError

    def contains(self, z: Tensor) -> Tensor:
        """Whether z (S, C, H, W) is in the region: (S,) bool. Norms in float64, up to 1e-5 eps + 1e-6 above eps."""
        return _between(z, 0, 1) & (self.size(z.double() - self.x) <= self.eps * (1 + 1e-5) + 1e-6)


class Linf(Region):
    """max |d| <= eps. The bounds x - eps and x + eps are computed once in float32 and hold exactly."""

    norm = "linf"

    @classmethod
    def around(cls, x: Tensor, eps: Tensor) -> Self:
        e = eps.to(x.dtype).view(-1, 1, 1, 1)
        return cls(x, eps.double(), (x - e).clamp_min(0), (x + e).clamp_max(1))

    def project(self, z: Tensor) -> Tensor:
        return torch.clamp(z, self.low, self.high)

    def steepest(self, g: Tensor) -> Tensor:
        return g.sign()

    def sample(self, key: Tensor) -> Tensor:
        noise = rng.uniform(key, tuple(self.x.shape[1:])) * 2 - 1
        return self.project(self.x + self.e * noise)

    def size(self, d: Tensor) -> Tensor:
        return d.abs().flatten(1).amax(1)

    def dual(self, g: Tensor) -> Tensor:
        return g.abs().flatten(1).sum(1)

    def contains(self, z: Tensor) -> Tensor:
        return _between(z, self.low, self.high)


class L2(Region):
    """sqrt(sum d^2) <= eps. The projection is onto the intersection of ball and [0, 1], not onto each in turn."""

    norm = "l2"

    def project(self, z: Tensor) -> Tensor:
        """The nearest point of {x + d: ||d|| <= eps, 0 <= x + d <= 1}.

        It is d = clip(s u, -x, 1 - x) for u = z - x and the largest s <= 1 with ||d|| <= eps. An element adds
        min(s^2 u_i^2, c_i^2) to ||d||^2, c = clip(u, -x, 1 - x): this is `rising` in s^2. Short of its root, the point
        already lies in the ball.
        """
        x, z = self.x.flatten(1), z.flatten(1)
        u, clipped = z - x, z.clamp(0, 1) - x
        squares = torch.stack([clipped, u]).square_()
        s = rising(squares, squares[0] / squares[1], self.eps.to(x.dtype)[:, None] ** 2, _MAX_ROUNDS)
        return torch.addcmul(x, u, s.sqrt().clamp_max(1)).clamp_(0, 1).view_as(self.x)

    def steepest(self, g: Tensor) -> Tensor:
        # In float64, because the squares of a saturated model's tiny gradients underflow.
        length = torch.linalg.vector_norm(g.flatten(1), dim=1, dtype=torch.float64)
        return g / _rows(length.to(g.dtype).clamp_min(torch.finfo(g.dtype).tiny))

    def sample(self, key: Tensor) -> Tensor:
        shape = tuple(self.x.shape[1:])
        direction = self.steepest(rng.normal(key, shape))
        radius = rng.uniform(rng.fold(key, 2), (1, 1, 1)) ** (1 / self.x[0].numel())
        return self.project(self.x + self.e * radius * direction)

    def size(self, d: Tensor) -> Tensor:
        return torch.linalg.vector_norm(d.flatten(1), dim=1)

    def dual(self, g: Tensor) -> Tensor:
        return self.size(g)


class L1(Region):
    """sum |d| <= eps. The projection is onto the intersection of ball and [0, 1], not onto each in turn."""

    norm = "l1"

    def project(self, z: Tensor) -> Tensor:
        """The nearest point of {x + d: sum |d| <= eps, 0 <= x + d <= 1} (Croce and Hein 2021, 2103.01208, sec. 3).

        It is d_i = sign(u_i) clip(|u_i| - lambda, 0, c_i) for u = z - x, c_i the distance from x_i to the border of
        [0, 1] in the direction of u_i, and the smallest lambda >= 0 with sum |d| <= eps: `falling` finds it.
        """
        x, eps = self.x.flatten(1), self.eps.to(self.x.dtype)[:, None]
        u = z.flatten(1) - x
        a, reach = u.abs(), margin_to_box(x, u)
        d = torch.minimum((a - falling(a, reach, eps)).clamp_min_(0), reach).copysign_(u)
        return (x + d).clamp_(0, 1).view_as(z)

    def steepest(self, g: Tensor) -> Tensor:
        flat = g.flatten(1)
        top = flat.abs().argmax(1, keepdim=True)
        return torch.zeros_like(flat).scatter_(1, top, flat.gather(1, top).sign()).view_as(g)

    def sample(self, key: Tensor) -> Tensor:
        noise = rng.normal(key, tuple(self.x.shape[1:]))
        radius = rng.uniform(rng.fold(key, 2), (1, 1, 1))
        return self.project(self.x + self.e * radius * noise / _rows(self.size(noise)))

    def size(self, d: Tensor) -> Tensor:
        return d.abs().flatten(1).sum(1)

    def dual(self, g: Tensor) -> Tensor:
        return g.abs().flatten(1).amax(1)


class L0(Region):
    """At most eps elements differ, each by as much as [0, 1] allows: sizes are counts of elements (C x H x W)."""

    norm = "l0"

    def project(self, z: Tensor) -> Tensor:
        """The nearest point: the eps largest changes stay, of equal ones the first."""
        x, z = self.x.flatten(1), z.clamp(0, 1).flatten(1)
        rank = (z - x).abs().argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        return torch.where(rank < self.eps[:, None], z, x).view_as(self.x)

    def sample(self, key: Tensor) -> Tensor:
        """eps elements, drawn at random, with values uniform in [0, 1]."""
        shape = tuple(self.x.shape[1:])
        rank = rng.uniform(rng.fold(key, 2), shape).flatten(1).argsort(dim=1).argsort(dim=1)
        return torch.where((rank < self.eps[:, None]).view_as(self.x), rng.uniform(key, shape), self.x)

    def size(self, d: Tensor) -> Tensor:
        return (d != 0).flatten(1).sum(1).to(d.dtype)

    def contains(self, z: Tensor) -> Tensor:
        return _between(z, 0, 1) & (self.size(z.double() - self.x) <= self.eps)  # a count needs no tolerance


@dataclass
class FourierLinf(Region):
    """max_k |(F d)_k| <= eps, F the unitary 2-D DFT of each channel (Faghri et al. 2021, eq. 6).

    `passes` (S, 1, H, W) is 1 at allowed frequencies and 0 at forbidden ones, where eps is 0. Clipping to [0, 1] can
    bring back some energy at forbidden frequencies.
    """

    norm = "fourier-linf"
    passes: Tensor

    @classmethod
    def around(cls, x: Tensor, eps: Tensor) -> Self:
        return cls(x, eps.double(), torch.zeros_like(x), torch.ones_like(x), torch.ones_like(x[:, :1]))

    def project(self, z: Tensor) -> Tensor:
        """A point of the region near z, not always the nearest.

        Each Fourier coefficient is shrunk to modulus eps. Clipping to [0, 1] can enlarge some again, so the two
        alternate, in each row until no coefficient changes by a thousandth of eps, and a final scaling of d puts the
        result in both sets. It scales all of d: after few rounds it would halve d on images that are mostly black.
        """
        allowed, enough = self.passes * self.e, 1e-3 * self.eps
        going = torch.ones_like(self.eps, dtype=torch.bool)
        for number in range(_MAX_FOURIER_ROUNDS):
            f = torch.fft.fft2(z - self.x, norm="ortho")
            size = f.abs()
            if number:  # z lies in [0, 1]
                going = going & ((size - allowed).flatten(1).amax(1) > enough)
            if z.device.type == "cpu" and not bool(going.any()):
                break
            f = f * (allowed / size.clamp_min(_TINY)).clamp_max(1)
            z = torch.where(_rows(going), (self.x + torch.fft.ifft2(f, norm="ortho").real).clamp(0, 1), z)
        d = z - self.x
        shrink = (self.e / _rows(self.size(d)).clamp_min(_TINY)).clamp_max(1)
        return (self.x + d * shrink).clamp(0, 1)

    def steepest(self, g: Tensor) -> Tensor:
        g = g / _rows(g.abs().flatten(1).amax(1)).clamp_min(torch.finfo(g.dtype).tiny)
        f = torch.fft.fft2(g, norm="ortho")
        return torch.fft.ifft2(f * self.passes / f.abs().clamp_min(_TINY), norm="ortho").real

    def sample(self, key: Tensor) -> Tensor:
        noise = self.steepest(rng.normal(key, tuple(self.x.shape[1:])))
        return self.project(self.x + self.e * rng.uniform(rng.fold(key, 2), (1, 1, 1)) * noise)

    def size(self, d: Tensor) -> Tensor:
        return torch.fft.fft2(d, norm="ortho").abs().flatten(1).amax(1)

    def dual(self, g: Tensor) -> Tensor:
        return (torch.fft.fft2(g, norm="ortho").abs() * self.passes).flatten(1).sum(1)


REGIONS: dict[str, type[Region]] = {region.norm: region for region in (Linf, L2, L1, L0, FourierLinf)}


def around(norm: str, x: Tensor, eps: Tensor) -> Region:
    """The regions of `norm` around x (S, C, H, W) in [0, 1] with sizes eps (S,). UserError for an unknown norm."""
    if norm not in REGIONS:
        raise unknown("norm", norm, REGIONS)
    return REGIONS[norm].around(x, eps)


def banded(region: Region, band: tuple[float, float] | None) -> Region:
    """`region` with perturbations of radial frequency low <= |k| <= high only, in cycles per pixel (0 to 0.7072).

    Unchanged if `band` is None or the norm is not fourier-linf.
    """
    if band is None or not isinstance(region, FourierLinf):
        return region
    return replace(region, passes=region.passes * _in_band(region.x, band).to(region.x))


def leak(d: Tensor, band: tuple[float, float]) -> Tensor:
    """The share (S,) of the energy of perturbations d (S, C, H, W) that lies outside `band`; 0 if d is 0."""
    energy = torch.fft.fft2(d, norm="ortho").abs() ** 2
    outside = (energy * ~_in_band(d, band)).flatten(1).sum(1)
    return outside / energy.flatten(1).sum(1).clamp_min(torch.finfo(energy.dtype).tiny)


def _in_band(x: Tensor, band: tuple[float, float]) -> Tensor:
    """Mask (H, W) bool over the DFT frequencies of images x: those in `band`."""
    rows, columns = (torch.fft.fftfreq(side, device=x.device) for side in x.shape[2:])
    radius = (rows[:, None] ** 2 + columns[None] ** 2).sqrt()
    return (radius >= band[0]) & (radius <= band[1])


def check_band(band: tuple[float, float] | None, norm: str) -> None:
    """UserError unless `band` is None, or `norm` is fourier-linf and 0 <= low < high."""
    if band is None:
        return
    if norm != FourierLinf.norm:
        raise UserError(f"band is for norm {FourierLinf.norm}, not {norm}")
    if not 0 <= band[0] < band[1]:
        raise UserError(f"band is {band[0]:g},{band[1]:g}, but must be low,high with 0 <= low < high")


def margin_to_box(x: Tensor, u: Tensor) -> Tensor:
    """The distance from each element of x to the border of [0, 1] in the direction of u's sign."""
    return torch.gt(u, 0, out=torch.empty_like(x)).sub_(x).abs_()  # in floating point: boolean masks are slow on CPUs


def _between(z: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """Whether all elements of a row are in [low, high] and none is NaN: (S,) bool. 5 times as fast as comparisons."""
    return (z.clamp(low, high) - z).flatten(1).abs().amax(1) == 0  # type: ignore[arg-type]


def _rows(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)
