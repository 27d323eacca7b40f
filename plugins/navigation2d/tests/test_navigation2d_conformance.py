"""Navigation keeps every rule for tasks, with its defaults and with a budget of a single rollout."""

from kshot.testing import suite

navigation2d = suite(tasks="navigation2d")
one_rollout = suite(tasks="navigation2d", options={"shot": 3, "query": 2, "rollouts": 1, "horizon": 12})
