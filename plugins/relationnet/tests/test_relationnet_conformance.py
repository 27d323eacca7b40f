"""Relation networks follow every rule for learners: on vectors, zero-shot, and on images with convolutions."""

from kshot.testing import sample_tasks, suite

conformance = suite(learner="relationnet")
mean = suite(learner="relationnet", options={"combine": "mean"})
images = sample_tasks.classification(input_shape=(1, 16, 16))
inductive = suite(learner="relationnet", tasks=images, options={"width": 8})
support = suite(learner="relationnet", tasks=images, options={"width": 8, "normalisation": "support"})
transductive = suite(learner="relationnet", tasks=images, options={"width": 8, "normalisation": "transductive"})
described = sample_tasks.classification(input_shape=(1, 16, 16), shot=0, semantics=5)
pictures_from_semantics = suite(learner="relationnet", tasks=described, options={"width": 8})
