"""Both tasks keep every rule for tasks, with a fixed length and with a range of lengths."""

from kshot.testing import suite

copy = suite(tasks="copy")
one_length = suite(tasks="copy", options={"length": 4, "bits": 3})
recall = suite(tasks="associative-recall")
one_list = suite(tasks="associative-recall", options={"items": 3, "length": 2, "block": 4})
