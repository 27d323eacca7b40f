"""The memory follows every rule for memories: with its defaults, with several write heads, and without any reach."""

from kshot.testing import suite

conformance = suite(memory="ntm-memory")
two_writes = suite(memory="ntm-memory", options={"writes": 2, "reach": 2})
content_only = suite(memory="ntm-memory", options={"reach": 0, "initial": 0.0})
