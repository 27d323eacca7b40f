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
_S27, _S30, _S31, _S32 = (np.uint64(s) for s in (27, 30, 31, 32))
_MASK = (1 << 64) - 1


@lru_cache(maxsize=4096)
def purpose_key(purpose: str) -> int:
    """A 64-bit number for a name: the first 8 bytes of its BLAKE2b, so that ``PYTHONHASHSEED`` has no say."""
    return int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=8).digest(), "little")


def mix(x: U64) -> U64:
    """The splitmix64 finaliser: a bijection of 64-bit words in which every input bit reaches every output bit."""
    x = (x ^ (x >> _S30)) * _M1
    x = (x ^ (x >> _S27)) * _M2
    return x ^ (x >> _S31)


def episode_keys(seed: int, split: str, indices: Sequence[int]) -> U64:
    """Keys [B], one an episode: its own randomness, from which all its draws follow."""
    base = np.full(1, (seed * 2 + 1) & _MASK, np.uint64)
    base = mix(mix(base) ^ np.uint64(purpose_key(split)))
    index = np.asarray(indices, np.int64).astype(np.uint64)
    return mix(base + (index + np.uint64(1)) * _GOLDEN)


def draws(keys: U64, purpose: str, count: int) -> U64:
    """``count`` random words for each of ``keys`` [B]: [B, count]. Longer draws begin with the shorter ones."""
    start = mix(keys ^ np.uint64(purpose_key(purpose)))
    steps = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
    return mix(start[:, None] + steps[None, :])


def below(words: U64, bound: int | U64) -> NDArray[np.int64]:
    """Words to integers in [0, bound), bound < 2^32, by the multiply-shift of the upper half (bias under 2^-32)."""
    return (((words >> _S32) * np.uint64(bound)) >> _S32).astype(np.int64)


def uniform(keys: U64, purpose: str, count: int) -> NDArray[np.float64]:
    """Uniform numbers of [0, 1) with 53 bits: [B, count]."""
    return (draws(keys, purpose, count) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def normal(keys: U64, purpose: str, count: int) -> NDArray[np.float64]:
    """Standard normal numbers [B, count], by Box and Muller; the same everywhere but for the rounding of log and cos."""
    u = uniform(keys, purpose, 2 * count)
    made: NDArray[np.float64] = np.sqrt(-2 * np.log1p(-u[:, ::2])) * np.cos(2 * np.pi * u[:, 1::2])
    return made


def choose(keys: U64, purpose: str, population: int | NDArray[np.int64], count: int, *, most: int | None = None,
           least: int | None = None) -> NDArray[np.int64]:
    """``count`` different integers of [0, population) for each key, in random order: [B, count].

    Every ordered selection is equally likely. Small selections are the first ``count`` different values of a stream
    of uniform draws; large ones the order of random words.

    Args:
        population: one number, or one for each key [B]; then ``least`` and ``most`` bound it over all keys that
            may ever be drawn with, so that a key's choice does not depend on its neighbours.
    """
    least = int(population if least is None else least)  # type: ignore[arg-type]
    most = int(population if most is None else most)  # type: ignore[arg-type]
    if count > least:
        raise ValueError(f"can't choose {count} different values of {least}")
    bound = np.broadcast_to(np.asarray(population, np.int64), keys.shape)[:, None]
    if count * 4 > least:
        words = draws(keys, purpose, most)
        if least != most:
            words = np.where(np.arange(most) < bound, words, np.uint64(_MASK))
        return np.argsort(words, axis=1, kind="stable")[:, :count]
    length = count + 8
    while True:
        values = below(draws(keys, purpose, length), bound.astype(np.uint64))
        repeated = np.tril(values[:, :, None] == values[:, None, :], -1).any(-1)
        if not repeated[:, :count].any():
            return values[:, :count]
        if int(repeated.sum(1).max()) <= length - count:
            return np.take_along_axis(values, np.argsort(repeated, axis=1, kind="stable")[:, :count], 1)
        length *= 2


def as_tensor(keys: U64) -> Tensor:
    """Keys [B] as int64, the form in which ``Support.key`` carries them."""
    return torch.from_numpy(keys.view(np.int64))


def generator(key: Tensor | int, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of an episode's own randomness for one purpose. ``key`` is a single element of ``Support.key``.

    The only source of chance in a learner: ``torch.randn(5, generator=kshot.generator(support.key[b], "noise"))``.
    """
    word = np.array([int(key) & _MASK], np.uint64)
    seed = int(mix(word ^ np.uint64(purpose_key(purpose)))[0])
    made = torch.Generator(device=device)
    made.manual_seed(seed & 0x7FFF_FFFF_FFFF_FFFF)
    return made


@contextmanager
def seeded(*parts: int | str) -> Iterator[None]:
    """Inside, torch's global CPU generator runs from a seed made of ``parts``; afterwards it is as it was before.

    For code that can't be handed a generator, such as dropout and module initialisation.
    """
    word = np.zeros(1, np.uint64)
    for part in parts:
        value = purpose_key(part) if isinstance(part, str) else part & _MASK
        word = mix(word + _GOLDEN ^ np.uint64(value))
    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(int(word[0]) & 0x7FFF_FFFF_FFFF_FFFF)
    try:
        yield
    finally:
        torch.default_generator.set_state(state)
