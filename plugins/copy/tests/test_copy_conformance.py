"""The tasks keep every rule for tasks, with a fixed length and with a range of lengths."""

from kshot.testing import suite

copy = suite(tasks="copy")
one_length = suite(tasks="copy", options={"length": 4, "bits": 3})
repeats = suite(tasks="repeat-copy", options={"length": (1, 3), "repeats": (2, 3), "bits": 4})
one_repeat = suite(tasks="repeat-copy", options={"length": 2, "repeats": 2})
more_copies = suite(tasks="repeat-copy", options={"length": 1, "repeats": (1, 4), "block": 4})
recall = suite(tasks="associative-recall")
one_list = suite(tasks="associative-recall", options={"items": 3, "length": 2, "block": 4})
