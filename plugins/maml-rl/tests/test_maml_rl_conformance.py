"""MAML for policies follows every rule for learners, with one, several and no updates, and with trust regions."""

from kshot.testing import suite

small = {"hidden": (6,)}
maml_rl = suite(learner="maml-rl", options=small)
two_updates = suite(learner="maml-rl", options={**small, "inner_steps": 2, "estimator": "dice", "outer": "reinforce"})
for_all_tasks = suite(learner="maml-rl", options={**small, "inner_steps": 0, "adapt_std": False})
trust_region = suite(
    learner="maml-rl",
    options={**small, "outer": "trpo"},
    expected_failures={"task-losses-part-the-gradient": "a step within a trust region is no sum over tasks"},
)
metasgd_rl = suite(learner="metasgd-rl", options=small)
one_rate_per_tensor = suite(
    learner="metasgd-rl", options={**small, "rates": "tensor", "inner_steps": 2, "adapt_std": False}
)
