"""Provide the part of a distribution that is left after the test has removed ``kshot_halved.data``."""
