"""Random numbers that are addressed: every draw is a pure function of a key and a purpose.

Episode *i* of a split is a pure function of ``(seed, split, i)``, whatever the process, platform or order. So draws
come from a counter-based hash (splitmix64: Steele, Lea & Flood 2014), vectorised over episodes, and not from a
generator that has to be advanced to its place. Integer draws are the same on every platform (``tests/golden``).

Letters: B episodes.
"""

from __future__ import annotations

import hashlib
import operator
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kshot.errors import OptionError

U64 = NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_M1 = np.uint64(0xBF58476D1CE4E5B9)
_M2 = np.uint64(0x94D049BB133111EB)
_ONE = np.uint64(1)
_S27, _S30, _S31, _S32 = (np.uint64(s) for s in (27, 30, 31, 32))
_MASK = (1 << 64) - 1
_SORTED = 1024  # words that are sorted together; of more, the smallest are chosen first


def as_seed(seed: int, who: str = "seed") -> int:
    """Return a seed as an int, after checking that torch can take it; whole numbers of numpy are accepted.

    Args:
        seed: a whole number of -2^63 to 2^64 - 1.
        who: whose seed it is, for messages.

    Raises:
        OptionError: the seed is not a whole number, or has more than 64 bits.

    Example:
        >>> as_seed(np.int64(3))
        3
    """
    try:
        value = operator.index(seed)
    except TypeError:
        value = None
    if value is None or not -(1 << 63) <= value <= _MASK:
        raise OptionError(f"{who}: got seed {seed!r}, expected a whole number of at most 64 bits; use e.g. 0")
    return value


@lru_cache(maxsize=4096)
def purpose_key(purpose: str) -> int:
    """Return a 64-bit number for a name: the first 8 bytes of its BLAKE2b, which ``PYTHONHASHSEED`` does not affect.

    Example:
        >>> purpose_key("dropout") == purpose_key("dropout")
        True
    """
    return int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=8).digest(), "little")


def mix(x: U64) -> U64:
    """Apply the splitmix64 finaliser: a bijection of 64-bit words in which every input bit affects every output bit.

    Example:
        >>> hex(mix(np.array([0x9E3779B97F4A7C15], np.uint64))[0])
        '0xe220a8397b1dcdaf'
    """
    x = x ^ (x >> _S30)
    x *= _M1
    x ^= x >> _S27
    x *= _M2
    x ^= x >> _S31
    return x


def mix_one(x: int) -> int:
    """Apply ``mix`` to a single word, which is faster with plain integers than with an array of one.

    Example:
        >>> hex(mix_one(0x9E3779B97F4A7C15))
        '0xe220a8397b1dcdaf'
    """
    x = ((x ^ (x >> 30)) * int(_M1)) & _MASK
    x = ((x ^ (x >> 27)) * int(_M2)) & _MASK
    return x ^ (x >> 31)


def episode_keys(seed: int, split: str, indices: Sequence[int]) -> U64:
    """Return a key per episode [B], from which all of its draws follow.

    Args:
        seed: of the tasks.
        split: the name of the split, or of another stream of episodes.
        indices: the episodes' numbers [B].

    Example:
        >>> keys = episode_keys(0, "train", range(4))
        >>> bool(keys[2] == episode_keys(0, "train", [2])[0])
        True
    """
    index = np.array(indices, np.int64).view(np.uint64)
    # splitmix64: state i is the base plus (i + 1) times the golden ratio; mixing the state gives word i.
    return mix(_split_base(operator.index(seed), split) + (index + _ONE) * _GOLDEN)


@lru_cache(maxsize=1024)
def _split_base(seed: int, split: str) -> np.uint64:
    base = mix(np.full(1, (seed * 2 + 1) & _MASK, np.uint64))
    return np.uint64(mix(base ^ np.uint64(purpose_key(split)))[0])


@lru_cache(maxsize=256)
def _steps(count: int) -> U64:
    """Return the counters of ``count`` draws, times the golden ratio [1, count]."""
    return np.arange(1, count + 1, dtype=np.uint64)[None] * _GOLDEN


def draws(keys: U64, purpose: str, count: int) -> U64:
    """Draw ``count`` random words for each of ``keys`` [B]: [B, count]. Longer draws begin with the shorter ones.

    Example:
        >>> keys = episode_keys(0, "train", [0, 1])
        >>> np.array_equal(draws(keys, "noise", 5)[:, :3], draws(keys, "noise", 3))
        True
    """
    start = mix(keys ^ np.uint64(purpose_key(purpose)))
    return mix(start[:, None] + _steps(count))


def below(words: U64, bound: int | U64) -> NDArray[np.int64]:
    """Map random words to integers in [0, bound), bound < 2^32, with a bias under 2^-32.

    The upper half of the word times the bound, shifted by 32 bits (multiply-shift).

    Example:
        >>> below(np.array([0, 1 << 63], np.uint64), 10)
        array([0, 5])
    """
    scaled = words >> _S32
    scaled *= np.uint64(bound) if isinstance(bound, int) else bound
    scaled >>= _S32
    return scaled.view(np.int64)


def uniform(keys: U64, purpose: str, count: int) -> NDArray[np.float64]:
    """Draw uniform numbers of [0, 1) with 53 bits: [B, count].

    Example:
        >>> u = uniform(episode_keys(0, "train", [0]), "noise", 1000)
        >>> bool(0 <= u.min() < u.max() < 1)
        True
    """
    return (draws(keys, purpose, count) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def uniform_as(x: Tensor, keys: Tensor, purpose: str) -> Tensor:
    """Draw uniform numbers of [-1, 1) for each episode, with the shape, type and device of a tensor.

    Args:
        x: any tensor [B, *].
        keys: of the episodes [B], as in ``Support.key``.
        purpose: what is drawn.

    Example:
        >>> uniform_as(torch.zeros(2, 3), torch.tensor([7, 8]), "start").shape
        torch.Size([2, 3])
    """
    words = keys.cpu().numpy().view(np.uint64)
    numbers = 2 * torch.from_numpy(uniform(words, purpose, x[0].numel() if len(x) else 0)) - 1
    return numbers.reshape(x.shape).to(x)


def normal(keys: U64, purpose: str, count: int) -> NDArray[np.float64]:
    """Draw standard normal numbers [B, count], by Box and Muller; the same on every platform except for rounding.

    Example:
        >>> normal(episode_keys(0, "train", [0, 1]), "noise", 3).shape
        (2, 3)
    """
    u = uniform(keys, purpose, 2 * count)
    values: NDArray[np.float64] = np.sqrt(-2 * np.log1p(-u[:, ::2])) * np.cos(2 * np.pi * u[:, 1::2])
    return values


def choose(
    keys: U64,
    purpose: str,
    population: int | NDArray[np.int64],
    count: int,
    *,
    most: int | None = None,
    least: int | None = None,
) -> NDArray[np.int64]:
    """Draw ``count`` different integers of [0, population) for each key, in random order: [B, count].

    Every ordered selection is equally likely. Small selections are the first ``count`` different values of a stream
    of uniform draws; large ones are the order of random words.

    Args:
        keys: of the episodes [B].
        purpose: what the draw is for; draws for different purposes are independent.
        population: one number, or one for each key [B]; in the latter case ``least`` and ``most`` bound it over all
            keys that may ever be drawn with, so that a key's choice does not depend on its neighbours.
        count: how many integers to draw.
        most: the greatest population, if there is one for each key.
        least: the smallest population, if there is one for each key.

    Raises:
        ValueError: ``count`` exceeds the population, or bounds are missing.

    Example:
        >>> chosen = choose(episode_keys(0, "train", [0]), "classes", 5, 5)
        >>> sorted(chosen[0].tolist())
        [0, 1, 2, 3, 4]
    """
    if isinstance(population, int):
        least = most = population
        bound: U64 | int = population
    elif least is None or most is None:
        raise ValueError(
            "choose: got a population for each key without bounds, expected least and most over all keys ever drawn "
            "with; pass both"
        )
    else:
        bound = population.astype(np.uint64)[:, None]
    if count > least:
        raise ValueError(f"choose: got count {count}, expected at most the population, {least}; choose fewer values")
    if count * 4 > least:
        # A large share of the population: order all of it by random words, and take the first.
        if isinstance(bound, int):
            return draws(keys, purpose, bound).argsort(axis=1, kind="stable")[:, :count]
        return _first_in_order(keys, purpose, bound[:, 0].astype(np.int64), count)
    # A small share: draw a few values more than needed and drop repetitions, which are rare.
    length = count + 8
    while True:
        values = below(draws(keys, purpose, length), bound)
        repeated = (values[:, :, None] == values[:, None, :]) & _earlier(length)
        again = repeated.any(-1)
        if not again[:, :count].any():
            return values[:, :count]
        if int(again.sum(1).max()) <= length - count:
            # Enough first occurrences for every key: a stable sort puts them first, in the order drawn.
            return np.take_along_axis(values, again.argsort(axis=1, kind="stable")[:, :count], 1)
        length *= 2


def _first_in_order(keys: U64, purpose: str, populations: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return the first ``count`` of each key's population in the order of its random words: [B, count].

    Each key costs as much as its own population, whatever the others' are. The order is that of one sort of all words:
    the words of a key are different, because ``mix`` is a bijection, so there are no ties.
    """
    chosen = np.empty((len(keys), count), np.int64)
    # Keys whose populations have the same number of binary digits are drawn together; what is too much sorts last.
    digits = np.frexp(populations.astype(np.float64))[1]
    for group in np.unique(digits):
        members = np.flatnonzero(digits == group)
        bound = populations[members, None]
        most = int(bound.max())
        if most <= _SORTED:
            words = draws(keys[members], purpose, most)
            words[np.arange(most) >= bound] = _MASK
            chosen[members] = words.argsort(axis=1, kind="stable")[:, :count]
        else:
            for i in members:
                chosen[i] = _smallest(keys[i : i + 1], purpose, int(populations[i]), count)
    return chosen


def _smallest(key: U64, purpose: str, population: int, count: int) -> NDArray[np.int64]:
    """Return the positions [count] of the smallest of many words of one key [1], in their order."""
    words = draws(key, purpose, population)[0]
    # About 2 * count + 64 words are below this limit: only those are sorted. Fewer than count are there by chance in
    # about one of 10^10 keys; then the limit is doubled.
    share = 2 * count + 64
    while True:
        limit = np.uint64(min(_MASK, (share << 64) // population))
        candidates = np.flatnonzero(words <= limit)
        if len(candidates) >= count:
            smallest: NDArray[np.int64] = candidates[words[candidates].argsort(kind="stable")[:count]]
            return smallest
        share *= 2


@lru_cache(maxsize=64)
def _earlier(length: int) -> NDArray[np.bool_]:
    """Return a mask [length, length] that is true if the column comes before the row."""
    return np.tri(length, k=-1, dtype=bool)


def as_tensor(keys: U64) -> Tensor:
    """Return keys [B] as int64, the form in which ``Support.key`` has them.

    Example:
        >>> as_tensor(episode_keys(0, "train", [0, 1])).dtype
        torch.int64
    """
    return torch.from_numpy(keys.view(np.int64))


def generator(key: Tensor | int, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator that depends only on an episode's key and a purpose: the only source of chance in a learner.

    Args:
        key: a single element of ``Support.key``.
        purpose: what is drawn; draws for different purposes are independent.
        device: of the generator.

    Example:
        >>> noise = [torch.randn(3, generator=generator(7, "noise")) for _ in range(2)]
        >>> torch.equal(*noise)
        True
    """
    seed = mix_one((int(key) & _MASK) ^ purpose_key(purpose))
    source = torch.Generator(device=device)
    source.manual_seed(seed & 0x7FFF_FFFF_FFFF_FFFF)
    return source


_global_generator = threading.RLock()


def global_generators(device: torch.device | None = None) -> list[torch.Generator]:
    """Return torch's global generator of the CPU, and that of a device if it has another one.

    Example:
        >>> len(global_generators(torch.device("cpu")))
        1
    """
    generators = [torch.default_generator]
    if device is not None and device.type != "cpu":
        module = torch.get_device_module(device)
        if device.type == "mps":  # its only generator has another name
            return [*generators, module._get_default_mps_generator()]
        # Empty before the first use of the device, on which nothing can be drawn until then.
        if own := getattr(module, "default_generators", ()):
            generators.append(own[module.current_device() if device.index is None else device.index])
    return generators


@contextmanager
def seeded(*parts: int | str, device: torch.device | None = None) -> Iterator[None]:
    """Run torch's global generators from a seed that is a hash of ``parts``; restore their states afterwards.

    For code that can't be passed a generator, such as dropout and the initialisation of modules. Threads wait for one
    another, as they have these generators in common.

    Args:
        parts: what the seed depends on.
        device: whose generator is seeded too, beside the CPU's; other devices are left alone.

    Example:
        >>> with seeded("example", 0):
        ...     first = torch.rand(3)
        >>> with seeded("example", 0):
        ...     bool((torch.rand(3) == first).all())
        True
    """
    word = 0
    for part in parts:
        value = purpose_key(part) if isinstance(part, str) else operator.index(part) & _MASK
        word = mix_one(((word + int(_GOLDEN)) & _MASK) ^ value)
    with _global_generator:
        states = [(each, each.get_state()) for each in global_generators(device)]
        for each, _ in states:
            each.manual_seed(word & 0x7FFF_FFFF_FFFF_FFFF)
        try:
            yield
        finally:
            for each, state in states:
                each.set_state(state)
