"""The tasks of each name keep every rule for tasks."""

import importlib.util

import pytest

from kshot.testing import suite

small = {"shot": 3, "query": 2, "horizon": 12}
cartpole = suite(tasks="cartpole", options={**small, "horizon": 60})
exchanged = suite(tasks="cartpole", options={**small, "actions": "exchanged", "rollouts": 1})
pendulum = suite(tasks="pendulum", options=small)
registered = suite(tasks="gymnasium", options=small)
discrete = suite(
    tasks="gymnasium",
    options={**small, "environment": "CartPole-v1", "parameter": "force_mag", "range": (5.0, 15.0), "horizon": 40},
)

if importlib.util.find_spec("mujoco") and importlib.util.find_spec("imageio"):
    velocity = suite(tasks="half-cheetah", options={**small, "horizon": 3})
    direction = suite(tasks="half-cheetah", options={**small, "horizon": 3, "goal": "direction"})
else:

    @pytest.mark.skip(reason="MuJoCo is not installed")
    def test_half_cheetahs_keep_every_rule():
        """They need MuJoCo."""
