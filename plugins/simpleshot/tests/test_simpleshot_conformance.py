"""SimpleShot follows every rule for learners: on vectors, by each transformation, and on images with conv4."""

from kshot.testing import sample_tasks, suite

conformance = suite(learner="simpleshot")
length = suite(learner="simpleshot", options={"transform": "L2N"})
plain = suite(learner="simpleshot", options={"transform": "UN", "scale": 1.0})
images = sample_tasks.classification(input_shape=(1, 16, 16))
inductive = suite(learner="simpleshot", tasks=images, options={"width": 8})
transductive = suite(learner="simpleshot", tasks=images, options={"width": 8, "normalisation": "transductive"})
