"""The encoder keeps the rules of the conformance kit, for texts and for any numbers."""

from __future__ import annotations

import itertools

import torch

import kshot
from kshot.data.texts import to_bytes
from kshot.testing import suite

WORDS = ("parcel", "password", "refund", "café", "日本語", "invoice", "late", "reset", "broken", "thanks")


def texts(way: int = 2, shot: int = 1, query: int = 2, seed: int = 0) -> kshot.ClassificationTasks:
    """Ten classes of nine texts of two words."""
    pairs = [(a, b) for a, b in itertools.product(WORDS, WORDS) if a != b]
    x = torch.stack([torch.from_numpy(to_bytes(f"{a} {b}", 60)) for a, b in pairs])
    pool = kshot.Pool.of(x, [WORDS.index(a) for a, _ in pairs])
    return kshot.ClassificationTasks({"train": pool}, way=way, shot=shot, query=query, seed=seed)


conformance = suite(encoder="wordllama", tasks=texts)
of_any_numbers = suite(encoder="wordllama")
