"""Which character is in which split, by protocol. Names are ``Alphabet/characterNN``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files

from kshot_omniglot.files import PARTS, Character

Splits = Mapping[str, Sequence[str]]

COUNTS = dict(zip(PARTS, (964, 659), strict=True))
"""Characters of each part."""

LAKE_VAL = ("Armenian", "Bengali", "Early_Aramaic", "Hebrew", "Mkhedruli_(Georgian)")
"""Validation alphabets of the Lake protocol: of the background alphabets, those with which Vinyals et al. validate."""


@cache
def vinyals() -> Splits:
    """The split of Vinyals et al. (2016), nearly every paper's: 1028, 172 and 423 characters.

    It mixes the two parts, and an alphabet may be in both train and test.
    """
    made: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for line in (files("kshot_omniglot") / "vinyals.txt").read_text("utf-8").splitlines():
        if not line.startswith("#"):
            split, name = line.split(" ")
            made[split].append(name)
    return with_trainval(made)


def lake(characters: Sequence[Character]) -> Splits:
    """The original split: background alphabets for training (5 of the 30 for validation), evaluation ones to test."""
    background = [c for c in characters if c.part == PARTS[0]]
    return with_trainval(
        {
            "train": [c.name for c in background if c.alphabet not in LAKE_VAL],
            "val": [c.name for c in background if c.alphabet in LAKE_VAL],
            "test": [c.name for c in characters if c.part == PARTS[1]],
        }
    )


def by_alphabet(characters: Sequence[Character], alphabets: Splits) -> Splits:
    """Whole alphabets to splits."""
    return with_trainval({s: [c.name for c in characters if c.alphabet in held] for s, held in alphabets.items()})


def with_trainval(splits: Splits) -> Splits:
    """And trainval, for a last training with the validation classes; it overlaps with both by intent."""
    return {**splits, "trainval": [*splits["train"], *splits["val"]]}
