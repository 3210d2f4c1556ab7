"""Counter-based random numbers: they depend on a key only, never on the batch in which they are drawn. And `kept`,
which seeds the global generators, from which a random model draws, and puts them back.

The generator is SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators"), written with
64-bit integer tensor operations, which wrap around alike on CPU and CUDA. An item's key is the fold of (seed, attack,
sample index, target, restart); an iteration's number is folded in, or passed to `draws`, to draw its numbers.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

_GAMMA = 0x9E3779B97F4A7C15 - 2**64  # the golden ratio in 64 bits, as a signed integer
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64


def _mix(z: Tensor) -> Tensor:
    """SplitMix64's finaliser. `>>` copies the sign bit of signed tensors, so the copies are masked off."""
    z = (z ^ ((z >> 30) & (2**34 - 1))) * _MIX_1
    z = (z ^ ((z >> 27) & (2**37 - 1))) * _MIX_2
    return z ^ ((z >> 31) & (2**33 - 1))


def fold(key: Tensor, value: Tensor | int) -> Tensor:
    """A new key (int64, the shape of `key`) that depends on `key` and on `value`, which is broadcast."""
    if isinstance(value, int):
        value = torch.full_like(key, value)
    return _mix(_mix(key) + (value + 1) * _GAMMA)


def keys(seed: int, name: str, index: Tensor, *more: Tensor | int) -> Tensor:
    """Keys (S,) of items: `name` of the attack, `index` (S,) int64 of the samples in the dataset, `more` as needed."""
    key = fold(torch.full_like(index, seed), crc32(name.encode()))
    for value in (index, *more):
        key = fold(key, value)
    return key


def bits(key: Tensor, shape: tuple[int, ...]) -> Tensor:
    """int64 (S, *shape) of 64 random bits each, for keys (S,)."""
    counter = torch.arange(1, math.prod(shape) + 1, device=key.device) * _GAMMA
    return _mix(key[:, None] + counter).view(len(key), *shape)


def draws(key: Tensor, at: Tensor, count: int) -> Tensor:
    """int64 (S, count) of 64 random bits each: numbers `at` x count onwards of the stream of each key (S,).

    `at` (S,) is the iteration. One call yields all numbers of an iteration. `bits` gives the start of the same stream.
    """
    counter = at[:, None] * count + torch.arange(1, count + 1, device=key.device)
    return _mix(key[:, None] + counter * _GAMMA)


def uniform(key: Tensor, shape: tuple[int, ...]) -> Tensor:
    """float32 (S, *shape), uniform in [0, 1), of 24 random bits each."""
    return ((bits(key, shape) >> 40) & (2**24 - 1)).float() * 2.0**-24


def normal(key: Tensor, shape: tuple[int, ...]) -> Tensor:
    """float32 (S, *shape), standard normal, by the Box-Muller transform."""
    radius = torch.sqrt(-2 * torch.log1p(-uniform(key, shape)))
    return radius * torch.cos(2 * math.pi * uniform(fold(key, 1), shape))


def signs(key: Tensor, shape: tuple[int, ...]) -> Tensor:
    """float32 (S, *shape) of -1 and 1 with equal probability."""
    return ((bits(key, shape) >> 63) & 1).float() * 2 - 1


def integers(key: Tensor, below: Tensor) -> Tensor:
    """int64 (S,), uniform in 0 <= value < below (S,), from 31 random bits: the bias is under below / 2^31."""
    return scaled(bits(key, (1,))[:, 0], below)


def scaled(hashes: Tensor, below: Tensor) -> Tensor:
    """Random bits `hashes` (int64) scaled to integers 0 <= value < below, from 31 of the bits."""
    return (((hashes >> 33) & (2**31 - 1)) * below) >> 31


@contextmanager
def kept(seed: int | None = None) -> Iterator[None]:
    """At the end the global generators of PyTorch, NumPy and `random` are as they were. Inside they start from `seed`.

    With `seed` None they go on.
    """
    state, numpy_state, cpu_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        if seed is not None:
            reseed(seed)
        yield
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(cpu_state)
        if cuda_states:
            torch.cuda.set_rng_state_all(cuda_states)


def reseed(seed: int) -> None:
    """Seed the global generators of PyTorch, NumPy and `random`."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed GPUs that are not in use
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
