"""ANIL follows every rule for learners: on vectors, lines and images with every normalisation, and first order."""

from kshot.testing import sample_tasks, suite

conformance = suite(learner="anil")
first_order = suite(learner="anil", options={"order": "first", "inner_steps": 2})
images = sample_tasks.classification(input_shape=(1, 16, 16))
transductive = suite(learner="anil", tasks=images, options={"width": 8})
support = suite(learner="anil", tasks=images, options={"width": 8, "normalisation": "support"})
inductive = suite(learner="anil", tasks=images, options={"width": 8, "normalisation": "inductive", "head": "3"})
