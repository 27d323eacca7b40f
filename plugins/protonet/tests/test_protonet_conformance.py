"""Prototypical networks follow every rule for learners: on vectors, zero-shot, and on images with conv4."""

from kshot.testing import sample_tasks, suite

conformance = suite(learner="protonet")
images = sample_tasks.classification(input_shape=(1, 16, 16))
inductive = suite(learner="protonet", tasks=images, options={"width": 8})
support = suite(learner="protonet", tasks=images, options={"width": 8, "normalisation": "support"})
transductive = suite(learner="protonet", tasks=images, options={"width": 8, "normalisation": "transductive"})
