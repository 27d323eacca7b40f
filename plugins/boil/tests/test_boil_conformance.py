"""BOIL follows every rule for learners: on vectors, lines and images with every normalisation, and first order."""

from kshot.testing import sample_tasks, suite

conformance = suite(learner="boil")
first_order = suite(learner="boil", options={"order": "first", "inner_steps": 2})
images = sample_tasks.classification(input_shape=(1, 16, 16))
transductive = suite(learner="boil", tasks=images, options={"width": 8})
support = suite(learner="boil", tasks=images, options={"width": 8, "normalisation": "support"})
inductive = suite(learner="boil", tasks=images, options={"width": 8, "normalisation": "inductive"})
