"""Texts become the right inputs; expected values are worked out by hand or by a second implementation."""

from __future__ import annotations

import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kshot.data.texts import from_bytes
from kshot.errors import DataError
from kshot_textfolder.ngrams import ngrams
from kshot_textfolder.texts import Form, prepare

BYTES = Form("bytes", size=16, length=20)
NGRAMS = Form("ngrams", size=32, length=20)


def test_ngrams_are_those_of_a_second_implementation() -> None:
    """By hand: the features of "Go, go" are go (twice), the comma, and the parts of <go> and <,>."""
    features = {"go": 2, "<go": 2, "go>": 2, "<go>": 2, ",": 1, "<,>": 1}
    expected = np.zeros(32)
    for feature, count in features.items():
        code = zlib.crc32(feature.encode())
        expected[(code >> 1) % 32] += (-1 if code & 1 else 1) * math.sqrt(count)
    assert np.allclose(ngrams("Go, go", 32), expected / np.linalg.norm(expected), atol=1e-6)


def test_ngrams_ignore_case_order_and_forms_of_letters() -> None:
    a = ngrams("Café ﬁne", 64)
    assert np.array_equal(a, ngrams("FINE CAFE\u0301", 64))
    assert math.isclose(np.linalg.norm(a), 1, abs_tol=1e-6)
    assert not ngrams(" ", 64).any()
    assert ngrams("😀", 64).any()


def test_texts_with_common_words_or_parts_of_words_are_nearer() -> None:
    """And hashes cancel on average, so that unrelated texts are nearly orthogonal."""
    a, b, c, d = (ngrams(t, 2048) for t in ("the parcel is late", "late parcels", "my password is wrong", "zebra"))
    assert a @ b > 0.3 > a @ c
    assert abs(a @ d) < 0.1


def test_a_text_a_file_and_a_mixture_give_the_same_inputs(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("Go, café!", encoding="utf-8")
    for form in (BYTES, NGRAMS):
        expected = prepare("Go, café!", form)
        assert expected.shape == (1, *form.shape)
        assert expected.dtype == torch.float32
        for raw in (path, [path], ["Go, café!"], np.array(["Go, café!"]), ("Go, café!",)):
            assert torch.equal(prepare(raw, form), expected)
        assert torch.equal(prepare(iter([path, "Go, café!"]), form), expected.expand(2, -1))
        assert torch.equal(prepare(expected, form), expected)
        assert torch.equal(prepare(expected.numpy(), form), expected)
    assert from_bytes(prepare(["Go, café!", "日本"], BYTES)) == ["Go, café!", "日本"]


def test_numbers_of_a_table_are_those_of_an_input(tmp_path: Path) -> None:
    """Bytes are divided by 255 where a table is read."""
    (tmp_path / "a.txt").write_text("Go!", encoding="utf-8")
    row = BYTES.decode(tmp_path / "a.txt")
    assert (row.shape, row.dtype) == ((1, 20), np.uint8)
    assert torch.allclose(torch.from_numpy(row) / 255, prepare("Go!", BYTES))
    assert NGRAMS.decode(tmp_path / "a.txt").dtype == np.float32


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "text '': got a text without a word"),
        (["one", " "], "got a text without a word"),
        ("one\0two", "got a NUL character"),
        (Path("no-such-file.txt"), r"no-such-file\.txt: got a file that can't be read"),
        (b"bytes", "got bytes to prepare, expected a text"),
        (7, "got int to prepare"),
        ([], "got an empty list to prepare"),
        (np.zeros((1, 3), np.float32), r"got float32 of shape \[1, 3\] to prepare, expected inputs \[n, 20\]"),
        (torch.zeros(1, 20, dtype=torch.uint8), r"got torch.uint8 of shape \[1, 20\]"),
        (torch.full((1, 20), float("nan")), "NaN"),
    ],
)
def test_other_inputs_are_refused(given: Any, message: str) -> None:
    """They are refused before a learner receives them."""
    with pytest.raises(DataError, match=message):
        prepare(given, BYTES)


def test_the_name_of_a_file_is_not_taken_for_a_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other plugins take a ``str`` as a path."""
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("one", encoding="utf-8")
    with pytest.raises(DataError, match=r"got 'a\.txt', the name of a file, expected a text; give Path\('a\.txt'\)"):
        prepare(["a.txt"], NGRAMS)
    assert from_bytes(prepare("I lost b.txt", BYTES)) == ["I lost b.txt"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": "words"}, "features: got 'words', expected 'ngrams' or 'bytes'"),
        ({"size": 1}, "size: got 1, expected at least 2"),
        ({"length": 3}, "length: got 3, expected at least 4"),
    ],
)
def test_impossible_forms_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Form(**{"features": "ngrams", "size": 16, "length": 20, **options})
