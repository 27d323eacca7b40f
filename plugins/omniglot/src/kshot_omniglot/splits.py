"""List the characters of each split by protocol. Names are ``Alphabet/characterNN``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files

from kshot_omniglot.files import PARTS, Character

Splits = Mapping[str, Sequence[str]]

COUNTS = dict(zip(PARTS, (964, 659), strict=True))
"""Part -> its number of characters."""

LAKE_VAL = ("Armenian", "Bengali", "Early_Aramaic", "Hebrew", "Mkhedruli_(Georgian)")
"""Validation alphabets of the Lake protocol: the background alphabets that Vinyals et al. use for validation."""


@cache
def vinyals() -> Splits:
    """Return the split of Vinyals et al. (2016), which nearly every paper uses: 1028, 172 and 423 characters.

    It mixes the two parts, and an alphabet may be in both train and test.

    Example:
        >>> {split: len(names) for split, names in vinyals().items()}
        {'train': 1028, 'val': 172, 'test': 423, 'trainval': 1200}
    """
    names: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for line in (files("kshot_omniglot") / "vinyals.txt").read_text("utf-8").splitlines():
        if not line.startswith("#"):
            split, name = line.split(" ")
            names[split].append(name)
    return with_trainval(names)


def lake(characters: Sequence[Character]) -> Splits:
    """Return the original split: background alphabets to train (5 of the 30 to validate), evaluation ones to test."""
    background = [c for c in characters if c.part == PARTS[0]]
    return with_trainval(
        {
            "train": [c.name for c in background if c.alphabet not in LAKE_VAL],
            "val": [c.name for c in background if c.alphabet in LAKE_VAL],
            "test": [c.name for c in characters if c.part == PARTS[1]],
        }
    )


def by_alphabet(characters: Sequence[Character], alphabets: Splits) -> Splits:
    """Return the characters of each split from the alphabets of each split."""
    return with_trainval({s: [c.name for c in characters if c.alphabet in chosen] for s, chosen in alphabets.items()})


def with_trainval(splits: Splits) -> Splits:
    """Add trainval, train and val together, for a last training once the options are chosen."""
    return {**splits, "trainval": [*splits["train"], *splits["val"]]}
