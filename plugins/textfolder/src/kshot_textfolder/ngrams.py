"""Represent a text by a vector of fixed length: the words and parts of words in it, without any vocabulary."""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections import Counter

import numpy as np
from numpy.typing import NDArray

LENGTHS = (3, 4, 5)
"""Numbers of characters of the parts of words."""

_WORD = re.compile(r"\w+|[^\w\s]")  # a word, or any other visible character


def ngrams(text: str, size: int) -> NDArray[np.float32]:
    """Return the hashed n-grams of a text: a vector [size] of length 1, or of zeros if it has no visible character.

    Features are the words, and their parts of 3, 4 and 5 characters with marks at both ends of a word, as
    in Bojanowski et al., "Enriching word vectors with subword information", 2017. A feature has a place and a sign by
    its hash (Weinberger et al., "Feature hashing for large scale multitask learning", 2009), so that features with the
    same place cancel each other on average. The square root of its number is added there. Upper and lower case are the
    same.

    Args:
        text: any text.
        size: number of places.

    Example:
        >>> a, b, c = (ngrams(text, 256) for text in ("The parcel is late.", "Late parcels", "I forgot my password"))
        >>> bool(a @ b > a @ c)
        True
    """
    counts: Counter[str] = Counter()
    for word in _WORD.findall(unicodedata.normalize("NFKC", text).casefold()):
        counts[word] += 1
        marked = f"<{word}>"
        for n in LENGTHS:
            counts.update(marked[i : i + n] for i in range(len(marked) - n + 1))
    vector = np.zeros(size, np.float64)
    for feature, count in counts.items():
        place, negative = divmod(zlib.crc32(feature.encode("utf-8", "replace")), 2)
        vector[place % size] += -(count**0.5) if negative else count**0.5
    length = float(np.linalg.norm(vector))
    return (vector / (length or 1.0)).astype(np.float32)
