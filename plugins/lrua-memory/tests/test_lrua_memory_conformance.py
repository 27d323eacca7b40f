"""The memory follows every rule for memories, without a key strength and with one."""

from kshot.testing import suite

conformance = suite(memory="lrua-memory")
strength = suite(memory="lrua-memory", options={"strength": 10.0})
