"""Counter-based random numbers: noise is a function of its key, never of the batch it is drawn in.

The generator is SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number
generators"), written with 64-bit integer tensor operations whose wrap-around is the same on CPU and
CUDA. A key is the fold of (seed, attack, sample index, target, restart); an iteration is folded in when
its numbers are drawn.
"""

from __future__ import annotations

import math
from zlib import crc32

import torch
from torch import Tensor

_GAMMA = 0x9E3779B97F4A7C15 - 2**64  # the golden ratio in 64 bits, as a signed integer
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64


def _mix(z: Tensor) -> Tensor:
    """SplitMix64's finaliser; `>>` is arithmetic on signed tensors, so the copied sign bits are masked off."""
    z = (z ^ ((z >> 30) & (2**34 - 1))) * _MIX_1
    z = (z ^ ((z >> 27) & (2**37 - 1))) * _MIX_2
    return z ^ ((z >> 31) & (2**33 - 1))


def fold(key: Tensor, value: Tensor | int) -> Tensor:
    """A new key (same shape, int64) that depends on `key` and on `value` (broadcast to its shape)."""
    if isinstance(value, int):
        value = torch.full_like(key, value)
    return _mix(_mix(key) + (value + 1) * _GAMMA)


def keys(seed: int, name: str, index: Tensor, *more: Tensor | int) -> Tensor:
    """Keys (S,) of items: `name` is the attack's, `index` (S,) int64 the samples' place in the dataset."""
    key = fold(torch.full_like(index, seed), crc32(name.encode()))
    for value in (index, *more):
        key = fold(key, value)
    return key


def bits(key: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Hashes (S, *shape), int64, for keys (S,)."""
    counter = torch.arange(1, math.prod(shape) + 1, device=key.device) * _GAMMA
    return _mix(key[:, None] + counter).view(len(key), *shape)


def draws(key: Tensor, at: Tensor, count: int) -> Tensor:
    """Hashes (S, count), int64: the numbers from `at` (S,) x count on of the stream of each key (S,).

    One mixing for all that an iteration needs. `bits` are the first numbers of the same stream.
    """
    counter = at[:, None] * count + torch.arange(1, count + 1, device=key.device)
    return _mix(key[:, None] + counter * _GAMMA)


def uniform(key: Tensor, shape: tuple[int, ...]) -> Tensor:
    """float32 (S, *shape) in [0, 1), 24 random bits each."""
    return ((bits(key, shape) >> 40) & (2**24 - 1)).float() * 2.0**-24


def normal(key: Tensor, shape: tuple[int, ...]) -> Tensor:
    """float32 (S, *shape) of standard normals, by Box and Muller."""
    radius = torch.sqrt(-2 * torch.log1p(-uniform(key, shape)))
    return radius * torch.cos(2 * math.pi * uniform(fold(key, 1), shape))


def signs(key: Tensor, shape: tuple[int, ...]) -> Tensor:
    """float32 (S, *shape) of -1 and 1, equally likely."""
    return ((bits(key, shape) >> 63) & 1).float() * 2 - 1


def integers(key: Tensor, below: Tensor) -> Tensor:
    """int64 (S,) with 0 <= value < below (S,), by 31 random bits: bias under below / 2^31."""
    return scaled(bits(key, (1,))[:, 0], below)


def scaled(hashes: Tensor, below: Tensor) -> Tensor:
    """`hashes` (int64) as integers with 0 <= value < below, by 31 of their bits."""
    return (((hashes >> 33) & (2**31 - 1)) * below) >> 31
