"""``reach2d`` keeps every rule for tasks, with both sorts of actions, and without the actions of demonstrations."""

from kshot.testing import suite

continuous = suite(tasks="reach2d")
discrete = suite(tasks="reach2d", options={"actions": "discrete", "objects": 4, "demonstrations": 2})
observations = suite(tasks="reach2d", options={"support": "observations", "query": 2, "horizon": 7, "trajectories": 3})
