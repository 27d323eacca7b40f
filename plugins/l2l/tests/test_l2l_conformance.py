"""Learned and tuned optimizers follow every rule for learners, in one unroll and in several, of either order."""

from kshot.testing import suite

conformance = suite(learner="l2l", options={"unroll": 2})
one_unroll = suite(learner="l2l", options={"hidden": 5})
second_order = suite(learner="l2l", options={"unroll": 2, "hidden": 5, "second_order": True})
adam = suite(learner="tuned-optimizer", options={"rates": 4})
nesterov = suite(learner="tuned-optimizer", options={"method": "nesterov", "lr": 0.01})
