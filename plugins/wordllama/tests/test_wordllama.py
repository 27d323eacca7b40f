"""Embeddings are those of the package wordllama, and a damaged package is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import kshot
from kshot.data.texts import to_bytes
from kshot.errors import DataError
from kshot_wordllama import WordLlama
from kshot_wordllama.encoder import VOCABULARY, WEIGHTS, content_of

SPEC = kshot.TaskSpec(kind="classification", input_shape=(80,), input_range=(0, 1), way=2, shot=1, query=1)

MESSAGES = {
    "delivery": (
        "Where is my parcel? It should have been here on Monday.", "The tracking page has not moved for five days.",
        "My order still hasn't arrived and I need it this week.", "How long does shipping to Norway take?",
        "Can you tell me when the package will be shipped?", "The courier left a card, but nobody rang the bell.",
    ),
    "account": (
        "I can't log in any more.", "I forgot my password and the reset mail does not come.",
        "My account is locked, please open it again.", "How do I change the email address of my profile?",
        "The app says that my username or password is wrong.", "Somebody else seems to have signed in with my name.",
    ),
    "payment": (
        "I was charged twice for the same order.", "When do I get my money back?", "Can I pay by bank transfer?",
        "The invoice shows a higher price than the website did.", "Please refund the amount that I paid for the lamp.",
        "My credit card was declined, though there is enough money on it.",
    ),
    "praise": (
        "Thank you, everything came quickly and it looks wonderful.", "I am very happy with the chair.",
        "What a friendly service, I will buy here again.", "The best headphones I have ever had.",
        "Great quality for the price!", "My daughter loves the bicycle.",
    ),
}  # fmt: skip
"""Messages to a shop, written for this test."""


def inputs(*texts: str) -> Tensor:
    """Return texts as inputs [n, 80]."""
    return torch.stack([torch.from_numpy(to_bytes(text, 80)) for text in texts]) / 255


@pytest.mark.parametrize(
    ("text", "length", "greatest"),
    [
        ("Hello world, café", 5.25485, {43: 1.0127, 204: 1.01093, 29: 0.90214, 6: 0.83668}),
        ("The parcel has not arrived.", 3.58705, {250: 0.49487, 195: 0.48004, 154: 0.47023, 33: 0.46562}),
        ("日本語 😀", 2.68893, {77: 0.43291, 46: 0.35585, 19: 0.34955, 148: 0.34424}),
    ],
)
def test_embeddings_are_those_of_wordllama(text: str, length: float, greatest: dict[int, float]) -> None:
    """The four greatest numbers that ``WordLlamaInference.embed`` of version 0.4.0.post1 gives, and the length."""
    with torch.no_grad():
        (z,) = WordLlama(SPEC)(inputs(text))
    assert float(z.norm()) == pytest.approx(1, abs=1e-5)
    assert z.argsort(descending=True)[:4].tolist() == list(greatest)
    for place, value in greatest.items():
        assert float(z[place]) * length == pytest.approx(value, abs=2e-4)


def test_each_text_has_its_own_mean() -> None:
    """Also beside texts without a token, at every place."""
    encoder = WordLlama(SPEC)
    texts = ("", "one two", "", "three", "")
    with torch.no_grad():
        z = encoder(inputs(*texts))
        for text, own in zip(texts, z, strict=True):
            assert torch.allclose(own, encoder(inputs(text))[0], atol=1e-6)
            assert bool(own.any()) == bool(text)


def test_messages_of_one_sort_are_nearest_to_each_other() -> None:
    """Of 24 messages, each left out in turn, at least 19 are nearest to the mean of their class (83 % were, by chance
    25 %; without the vectors' training it is a matter of common words).
    """
    with torch.no_grad():
        z = WordLlama(SPEC)(inputs(*(text for texts in MESSAGES.values() for text in texts))).view(4, 6, -1)
    right = 0
    for c in range(4):
        for i in range(6):
            means = z.mean(1)
            means[c] = torch.cat([z[c, :i], z[c, i + 1 :]]).mean(0)
            right += int((means @ z[c, i] / means.norm(dim=1)).argmax()) == c
    assert right >= 19


def test_tune_trains_the_vectors_of_the_words_that_are_read() -> None:
    """Other rows get no gradient."""
    encoder = WordLlama(SPEC, tune="all")
    encoder(inputs("password")).square()[:, 0].sum().backward()
    grad = encoder.vectors.weight.grad
    assert grad is not None
    ids = encoder.tokenizer.encode("password", add_special_tokens=False).ids
    assert set(grad.abs().sum(1).nonzero()[:, 0].tolist()) == set(ids)
    assert not any(p.requires_grad for p in WordLlama(SPEC).parameters())


@pytest.mark.parametrize("shape", [(1, 20, 101), (3, 84, 84), (1, 80)])
def test_other_inputs_are_refused(shape: tuple[int, ...]) -> None:
    spec = kshot.TaskSpec(kind="classification", input_shape=shape, way=2, shot=1, query=1)
    with pytest.raises(DataError, match=r"expected texts as bytes \[L\].*features=bytes"):
        WordLlama(spec)


def test_vectors_of_words_are_not_taken_for_texts() -> None:
    """``ngrams`` of textfolder are within -1 and 1."""
    spec = kshot.TaskSpec(kind="classification", input_shape=(64,), input_range=(-1, 1), way=2, shot=1, query=1)
    with pytest.raises(DataError, match=r"in \[-1.0, 1.0\], expected texts as bytes"):
        WordLlama(spec)


def test_a_damaged_package_is_named() -> None:
    with pytest.raises(DataError, match=r"got the SHA-256 64b4\w+ of .*safetensors, expected 0{64}, .*pip install"):
        content_of(WEIGHTS[0], "0" * 64)
    with pytest.raises(DataError, match=r"got no file tokenizers/none\.json in the package wordllama, .*pip install"):
        content_of("tokenizers/none.json", "0" * 64)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"got no file .* pip install --force-reinstall wordllama"):
        content_of(*VOCABULARY)


def test_the_package_itself_is_not_imported() -> None:
    """It needs pydantic and requests, and a second for it; and it sets up logging for the whole process."""
    WordLlama(SPEC)
    assert "wordllama" not in sys.modules
    assert Path(sys.modules["kshot_wordllama"].__file__ or "").exists()
