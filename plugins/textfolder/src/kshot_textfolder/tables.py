"""Convert the texts of a CSV file once, into a table in kshot's cache."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor

from kshot.data import tables
from kshot.data.folders import tell_copies
from kshot.data.listings import Listing
from kshot_textfolder.texts import VERSION, Form


def load_listing(listing: Listing, form: Form, cache: Path | str | None = None) -> tuple[Tensor, str]:
    """Return all texts of a CSV file as inputs, from the cache or converted and put there, and their fingerprint.

    The fingerprint depends on the labels, the texts of each label in their order, and the form.

    Args:
        listing: the file, as ``kshot.data.listings.read_listing`` returns it.
        form: the form into which to convert the texts.
        cache: kshot's cache folder; by default ``KSHOT_CACHE``, or the system's.

    Returns:
        The inputs [num, L] in the order of ``listing.examples``, and the fingerprint.

    Warns of texts that are the same.

    Raises:
        DataError: a text has a NUL character. The message has its line.
    """
    content = json.dumps([[label, *texts] for label, texts in listing.classes.items()])
    digest = hashlib.blake2b(content.encode(), digest_size=16).hexdigest()
    named = list(zip(listing.examples, listing.names, strict=True))

    def make() -> tables.Made:
        rows = [form.of_text(text, f"{listing.path}, text of {name.rpartition('/')[2]}")[None] for text, name in named]
        return tables.Made({}, form.dtype, (len(rows), *form.shape), rows)

    path = tables.cache_folder("textfolder", cache) / f"{digest[:20]}-{form.name}.table"
    table = tables.open_or_build(path, make, name="textfolder", version=VERSION)
    tell_copies(f"textfolder: {listing.path}", listing.copies(), "texts")
    return torch.from_numpy(table.x), f"textfolder-{form.name}-{digest[:16]}"
