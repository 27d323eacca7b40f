"""Bandits keep every rule for tasks, with and without observation of the previous pull."""

from kshot.testing import suite

bandits = suite(tasks="bandits")
remembered = suite(tasks="bandits", options={"arms": 10, "history": True, "rollouts": 1})
