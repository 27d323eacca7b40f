"""Chance that is addressable: every draw is a pure function of a key and a purpose.

Episode *i* of a split is a pure function of ``(seed, split, i)``, whatever the process, platform or order. So draws
come from a counter-based hash (splitmix64: Steele, Lea & Flood 2014), vectorised over episodes, and not from a
generator that has to be walked to its place. Integer draws are the same on every platform (``tests/golden``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

U64 = NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_M1 = np.uint64(0xBF58476D1CE4E5B9)
_M2 = np.uint64(0x94D049BB133111EB)
_ONE = np.uint64(1)
_S27, _S30, _S31, _S32 = (np.uint64(s) for s in (27, 30, 31, 32))
_MASK = (1 << 64) - 1


@lru_cache(maxsize=4096)
def purpose_key(purpose: str) -> int:
    """A 64-bit number for a name: the first 8 bytes of its BLAKE2b, so that ``PYTHONHASHSEED`` has no say."""
    return int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=8).digest(), "little")


def mix(x: U64) -> U64:
    """The splitmix64 finaliser: a bijection of 64-bit words in which every input bit reaches every output bit."""
    x = x ^ (x >> _S30)
    x *= _M1
    x ^= x >> _S27
    x *= _M2
    x ^= x >> _S31
    return x


def mix_one(x: int) -> int:
    """``mix`` of a single word: plain integers are quicker than an array of one."""
    x = ((x ^ (x >> 30)) * int(_M1)) & _MASK
    x = ((x ^ (x >> 27)) * int(_M2)) & _MASK
    return x ^ (x >> 31)


def episode_keys(seed: int, split: str, indices: Sequence[int]) -> U64:
    """Keys [B], one an episode: its own randomness, from which all its draws follow."""
    index = np.array(indices, np.int64).view(np.uint64)
    return mix(_split_base(seed, split) + (index + _ONE) * _GOLDEN)


@lru_cache(maxsize=1024)
def _split_base(seed: int, split: str) -> np.uint64:
    base = mix(np.full(1, (seed * 2 + 1) & _MASK, np.uint64))
    return np.uint64(mix(base ^ np.uint64(purpose_key(split)))[0])


@lru_cache(maxsize=256)
def _steps(count: int) -> U64:
    """The counters of ``count`` draws, times the golden ratio [1, count]."""
    return np.arange(1, count + 1, dtype=np.uint64)[None] * _GOLDEN


def draws(keys: U64, purpose: str, count: int) -> U64:
    """``count`` random words for each of ``keys`` [B]: [B, count]. Longer draws begin with the shorter ones."""
    start = mix(keys ^ np.uint64(purpose_key(purpose)))
    return mix(start[:, None] + _steps(count))


def below(words: U64, bound: int | U64) -> NDArray[np.int64]:
    """Words to integers in [0, bound), bound < 2^32, by the multiply-shift of the upper half (bias under 2^-32)."""
    made = words >> _S32
    made *= np.uint64(bound) if isinstance(bound, int) else bound
    made >>= _S32
    return made.view(np.int64)


def uniform(keys: U64, purpose: str, count: int) -> NDArray[np.float64]:
    """Uniform numbers of [0, 1) with 53 bits: [B, count]."""
    return (draws(keys, purpose, count) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def normal(keys: U64, purpose: str, count: int) -> NDArray[np.float64]:
    """Standard normal numbers [B, count], by Box and Muller; the same everywhere but for rounding."""
    u = uniform(keys, purpose, 2 * count)
    made: NDArray[np.float64] = np.sqrt(-2 * np.log1p(-u[:, ::2])) * np.cos(2 * np.pi * u[:, 1::2])
    return made


def choose(
    keys: U64,
    purpose: str,
    population: int | NDArray[np.int64],
    count: int,
    *,
    most: int | None = None,
    least: int | None = None,
) -> NDArray[np.int64]:
    """``count`` different integers of [0, population) for each key, in random order: [B, count].

    Every ordered selection is equally likely. Small selections are the first ``count`` different values of a stream
    of uniform draws; large ones the order of random words.

    Args:
        population: one number, or one for each key [B]; then ``least`` and ``most`` bound it over all keys that
            may ever be drawn with, so that a key's choice does not depend on its neighbours.
    """
    if isinstance(population, int):
        least = most = population
        bound: U64 | int = population
    elif least is None or most is None:
        raise ValueError("a population for each key needs least and most, bounds over all keys ever drawn with")
    else:
        bound = population.astype(np.uint64)[:, None]
    if count > least:
        raise ValueError(f"can't choose {count} different values of {least}")
    if count * 4 > least:
        words = draws(keys, purpose, most)
        if least != most:
            words[np.arange(most) >= bound] = _MASK
        return words.argsort(axis=1, kind="stable")[:, :count]
    length = count + 8
    while True:
        values = below(draws(keys, purpose, length), bound)
        repeated = (values[:, :, None] == values[:, None, :]) & _earlier(length)
        again = repeated.any(-1)
        if not again[:, :count].any():
            return values[:, :count]
        if int(again.sum(1).max()) <= length - count:
            return np.take_along_axis(values, again.argsort(axis=1, kind="stable")[:, :count], 1)
        length *= 2


@lru_cache(maxsize=64)
def _earlier(length: int) -> NDArray[np.bool_]:
    """[length, length]: whether the column comes before the row."""
    return np.tri(length, k=-1, dtype=bool)


def as_tensor(keys: U64) -> Tensor:
    """Keys [B] as int64, the form in which ``Support.key`` carries them."""
    return torch.from_numpy(keys.view(np.int64))


def generator(key: Tensor | int, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of an episode's own randomness for one purpose. ``key`` is a single element of ``Support.key``.

    The only source of chance in a learner: ``torch.randn(5, generator=kshot.generator(support.key[b], "noise"))``.
    """
    seed = mix_one((int(key) & _MASK) ^ purpose_key(purpose))
    made = torch.Generator(device=device)
    made.manual_seed(seed & 0x7FFF_FFFF_FFFF_FFFF)
    return made


@contextmanager
def seeded(*parts: int | str) -> Iterator[None]:
    """Inside, torch's global CPU generator runs from a seed made of ``parts``; afterwards it is as it was before.

    For code that can't be handed a generator, such as dropout and module initialisation.
    """
    word = 0
    for part in parts:
        value = purpose_key(part) if isinstance(part, str) else part & _MASK
        word = mix_one(((word + int(_GOLDEN)) & _MASK) ^ value)
    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(word & 0x7FFF_FFFF_FFFF_FFFF)
    try:
        yield
    finally:
        torch.default_generator.set_state(state)
