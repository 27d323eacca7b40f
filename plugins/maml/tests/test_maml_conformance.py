"""MAML follows every rule for learners: on vectors, lines and images with every normalisation, and first order."""

from kshot.testing import sample_tasks, suite

conformance = suite(learner="maml")
first_order = suite(learner="maml", options={"order": "first", "inner_steps": 2})
images = sample_tasks.classification(input_shape=(1, 16, 16))
transductive = suite(learner="maml", tasks=images, options={"width": 8})
support = suite(learner="maml", tasks=images, options={"width": 8, "normalisation": "support"})
inductive = suite(learner="maml", tasks=images, options={"width": 8, "normalisation": "inductive"})
