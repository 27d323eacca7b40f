"""The encoder keeps the rules of the conformance kit."""

from kshot.testing import suite

conformance = suite(encoder="efficientnet-lite")
