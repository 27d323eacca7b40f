"""iMAML follows every rule for learners: on vectors and lines, and on images with every normalisation."""

from kshot.testing import sample_tasks, suite

conformance = suite(learner="imaml")
images = sample_tasks.classification(input_shape=(1, 16, 16))
transductive = suite(learner="imaml", tasks=images, options={"width": 8, "inner_steps": 4})
support = suite(learner="imaml", tasks=images, options={"width": 8, "inner_steps": 4, "normalisation": "support"})
inductive = suite(learner="imaml", tasks=images, options={"width": 8, "inner_steps": 4, "normalisation": "inductive"})
