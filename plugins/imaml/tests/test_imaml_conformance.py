"""iMAML follows every rule for learners: on vectors and lines, and on images with every normalisation."""

from kshot.testing import sample_tasks, suite

conformance = suite(learner="imaml")
images = sample_tasks.classification(input_shape=(1, 16, 16))
small = {"width": 4, "inner_steps": 2, "cg_steps": 2}
transductive = suite(learner="imaml", tasks=images, options=small)
support = suite(learner="imaml", tasks=images, options={**small, "normalisation": "support"})
inductive = suite(learner="imaml", tasks=images, options={**small, "normalisation": "inductive"})
