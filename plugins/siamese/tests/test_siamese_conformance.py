"""Siamese networks follow every rule for learners: both losses, on vectors and on images, under every normalisation."""

from kshot.testing import sample_tasks, suite

conformance = suite(learner="siamese")
koch = suite(learner="siamese", options={"loss": "koch"})
free = suite(learner="siamese", options={"unit_length": False, "average": "all"})
images = sample_tasks.classification(shot=1, query=2, input_shape=(1, 16, 16))
inductive = suite(learner="siamese", tasks=images, options={"width": 8})
support = suite(learner="siamese", tasks=images, options={"width": 8, "loss": "koch", "normalisation": "support"})
transductive = suite(learner="siamese", tasks=images, options={"width": 8, "normalisation": "transductive"})
