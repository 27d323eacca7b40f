"""Bandits keep every rule for tasks: blind, and with the last pull observed."""

from kshot.testing import suite

bandits = suite(tasks="bandits")
remembered = suite(tasks="bandits", options={"arms": 10, "history": True, "rollouts": 1})
