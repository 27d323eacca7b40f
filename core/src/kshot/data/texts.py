"""Read texts, and store a text as an input of fixed length: its bytes in UTF-8, from which the text can be read again.

Letters: n texts, L bytes of an input.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kshot.data.files import check_regular
from kshot.errors import DataError


def read_text(path: Path | str) -> str:
    """Return the text in a file, without a byte order mark.

    Raises:
        DataError: the file can't be read, or is not UTF-8. The message names it, and the first line that is not.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "a.txt")
        ...     _ = path.write_text("café", encoding="utf-8")
        ...     read_text(path)
        'café'
    """
    check_regular(path, "a text")
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: got a file that can't be read ({error.strerror or error}), expected a text; fix or remove it"
        ) from error
    return decoded(content, str(path))


def decoded(content: bytes, name: str) -> str:
    """Return bytes in UTF-8 as text, without a byte order mark.

    Args:
        content: the bytes.
        name: where they are from, for messages.

    Raises:
        DataError: they are not UTF-8. The message has the name and the number of the first line that is not.

    Example:
        >>> decoded(b"one\\ncaf\\xe9", "a.txt")
        Traceback (most recent call last):
        kshot.errors.DataError: a.txt, line 2: got bytes that are not UTF-8 (0xe9 in b'caf\\xe9'), expected UTF-8; \
convert the file, such as by iconv -f WINDOWS-1252 -t UTF-8
    """
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(
            f"{name}, line 1: got a text in UTF-16, expected UTF-8; convert the file, such as by iconv -f UTF-16 "
            "-t UTF-8"
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # Positions are counted without the byte order mark, which the decoder removes first.
        content = content.removeprefix(b"\xef\xbb\xbf")
        line = content.count(b"\n", 0, error.start) + 1
        around = content[max(0, error.start - 12, content.rfind(b"\n", 0, error.start) + 1) : error.start + 4]
        raise DataError(
            f"{name}, line {line}: got bytes that are not UTF-8 ({content[error.start]:#04x} in {around!r}), expected "
            "UTF-8; convert the file, such as by iconv -f WINDOWS-1252 -t UTF-8"
        ) from error


def check_text(text: str, name: str) -> None:
    """Raise DataError if a text has no visible character, or a NUL character, which stands for the end of a text.

    Example:
        >>> check_text(" ", "a.txt")
        Traceback (most recent call last):
        kshot.errors.DataError: a.txt: got a text without a word, expected one; write one or remove it
    """
    if not text.strip():
        raise DataError(f"{name}: got a text without a word, expected one; write one or remove it")
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(
            f"{name}, line {line}: got a NUL character, expected text; remove it, or the file if it is not a text"
        )


def to_bytes(text: str, length: int) -> NDArray[np.uint8]:
    """Return a text as [length] bytes of UTF-8, with zeros after its end; a longer text is cut after a character.

    Args:
        text: without NUL characters, see ``check_text``.
        length: L.

    Example:
        >>> to_bytes("né", 4).tolist(), to_bytes("né", 2).tolist()
        ([110, 195, 169, 0], [110, 0])
    """
    content = text.encode("utf-8", "replace")[:length]
    # Only the last character can be cut in two.
    content = content.decode("utf-8", "ignore").encode("utf-8")
    row = np.zeros(length, np.uint8)
    row[: len(content)] = np.frombuffer(content, np.uint8)
    return row


def from_bytes(x: Tensor) -> list[str]:
    """Return the n texts of inputs [n, L] that ``to_bytes`` made, as float32 of which 1.0 is 255, or as uint8.

    Numbers that are no bytes of UTF-8 do not raise an error: they are rounded, and become replacement characters.

    Example:
        >>> from_bytes(torch.tensor([[110.0, 195.0, 169.0, 0.0]]) / 255)
        ['né']
    """
    whole = x.detach().cpu()
    if whole.dtype != torch.uint8:
        whole = (whole.float() * 255).nan_to_num(0).round().clamp(0, 255).to(torch.uint8)
    return [row.tobytes().partition(b"\0")[0].decode("utf-8", "replace") for row in whole.numpy()]
