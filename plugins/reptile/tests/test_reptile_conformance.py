"""Reptile follows every rule for learners: on vectors and lines, with SGD, and on images with each normalisation."""

from kshot.testing import sample_tasks, suite

conformance = suite(learner="reptile")
sgd = suite(learner="reptile", options={"inner_optimizer": "sgd", "inner_lr": 0.05, "inner_batch": 2, "test_batch": 2})
images = sample_tasks.classification(input_shape=(1, 16, 16))
few = {"width": 8, "test_steps": 5, "inner_batch": 4, "test_batch": 4}
inductive = suite(learner="reptile", tasks=images, options={**few, "normalisation": "inductive"})
support = suite(learner="reptile", tasks=images, options={**few, "normalisation": "support"})
transductive = suite(learner="reptile", tasks=images, options={**few, "normalisation": "transductive"})
kept = suite(learner="reptile", options={"moments": "kept", "inner_optimizer": "adam", "inner_lr": 0.01})
