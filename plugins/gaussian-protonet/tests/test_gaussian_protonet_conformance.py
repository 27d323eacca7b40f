"""Gaussian prototypical networks follow every rule for learners, on vectors and images, with each option."""

from kshot.testing import sample_tasks, suite

conformance = suite(learner="gaussian-protonet")
diagonal = suite(learner="gaussian-protonet", options={"precision": "diagonal", "transform": "learned"})
constant = suite(learner="gaussian-protonet", options={"precision": "constant", "transform": "sigmoid"})
images = sample_tasks.classification(input_shape=(1, 16, 16))
inductive = suite(learner="gaussian-protonet", tasks=images, options={"width": 8, "transform": "sigmoid4"})
support = suite(learner="gaussian-protonet", tasks=images, options={"width": 8, "normalisation": "support"})
transductive = suite(learner="gaussian-protonet", tasks=images, options={"width": 8, "normalisation": "transductive"})
