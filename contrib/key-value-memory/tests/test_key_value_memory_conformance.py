"""The memory follows every rule for memories, also with a single slot."""

from kshot.testing import suite

conformance = suite(memory="key-value-memory")
one_slot = suite(memory="key-value-memory", options={"slots": 1, "width": 3, "reads": 2})
