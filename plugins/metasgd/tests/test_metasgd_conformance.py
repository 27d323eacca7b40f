"""Meta-SGD follows every rule for learners: on vectors, lines and images with every normalisation, and first order."""

from kshot.testing import sample_tasks, suite

conformance = suite(learner="metasgd")
first_order = suite(learner="metasgd", options={"order": "first", "inner_steps": 2, "rates": "tensor"})
images = sample_tasks.classification(input_shape=(1, 16, 16))
transductive = suite(learner="metasgd", tasks=images, options={"width": 8})
support = suite(learner="metasgd", tasks=images, options={"width": 8, "normalisation": "support"})
inductive = suite(learner="metasgd", tasks=images, options={"width": 8, "normalisation": "inductive"})
