"""Texts are read as UTF-8 or refused by name and line, and come back from the bytes of an input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from kshot.data.texts import check_text, decoded, from_bytes, read_text, to_bytes
from kshot.errors import DataError


@pytest.mark.parametrize("text", ["plain", "two\nlines\r\n", "café", "日本語", "😀 and more", "e\u0301"])
def test_a_text_is_read_as_it_was_written(tmp_path: Path, text: str) -> None:
    """Line ends and Unicode forms stay; a byte order mark, which some editors add, is no part of the text."""
    for start in (b"", b"\xef\xbb\xbf"):
        (tmp_path / "a.txt").write_bytes(start + text.encode())
        assert read_text(tmp_path / "a.txt") == text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"one\ntwo\ncaf\xe9\n", r"a\.txt, line 3: got bytes that are not UTF-8 \(0xe9 in b'caf"),
        (b"\xef\xbb\xbfone\ncaf\xe9", r"a\.txt, line 2: got bytes that are not UTF-8 \(0xe9"),
        (b"\xe9", r"a\.txt, line 1: .*iconv -f WINDOWS-1252"),
        ("one".encode("utf-16"), r"a\.txt, line 1: got a text in UTF-16, expected UTF-8; convert .*iconv -f UTF-16"),
        (b"cut off \xe2\x82", r"line 1: got bytes that are not UTF-8 \(0xe2"),
    ],
)
def test_other_encodings_are_refused_by_file_and_line(tmp_path: Path, content: bytes, message: str) -> None:
    """A guessed encoding would give wrong letters without a word."""
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_text(tmp_path / "a.txt")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.txt: got a file that can't be read \(No such file"):
        read_text(tmp_path / "none.txt")
    with pytest.raises(DataError, match=r"/dev/null: got a device, expected a text"):
        read_text("/dev/null")


def test_texts_without_words_and_nul_characters_are_refused() -> None:
    """A NUL would end the text in an input."""
    check_text("?", "here")
    for empty in ("", " \n\t"):
        with pytest.raises(DataError, match="here: got a text without a word"):
            check_text(empty, "here")
    with pytest.raises(DataError, match="here, line 2: got a NUL character"):
        check_text("one\ntw\0o", "here")


def test_bytes_are_those_of_utf_8_with_zeros_after_the_end() -> None:
    """By hand: é is c3 a9."""
    assert to_bytes("é!", 5).tolist() == [0xC3, 0xA9, 0x21, 0, 0]
    assert to_bytes("é!", 5).dtype == np.uint8


@pytest.mark.parametrize("text", ["plain", "café", "日本語", "😀😀"])
def test_a_text_comes_back_from_an_input(text: str) -> None:
    """As it comes from a table, divided by 255 in float32, and as bytes."""
    row = torch.from_numpy(to_bytes(text, 40))
    assert from_bytes(torch.stack([row, row]).float() / 255) == [text, text]
    assert from_bytes(row[None]) == [text]


def test_a_long_text_is_cut_after_a_character() -> None:
    """For each length the longest beginning of the text that fits."""
    text = "aé日😀z"
    for length in range(1, 14):
        (kept,) = from_bytes(torch.from_numpy(to_bytes(text, length))[None])
        fits = [text[:i] for i in range(len(text) + 1) if len(text[:i].encode()) <= length]
        assert kept == fits[-1]


def test_any_numbers_are_read_without_an_error() -> None:
    """A network is tried on random numbers when a learner is built around it."""
    for x in (torch.randn(3, 9), torch.full((1, 4), float("nan")), torch.full((1, 4), 1e30)):
        assert len(from_bytes(x)) == len(x)
    assert decoded(b"", "empty") == ""
