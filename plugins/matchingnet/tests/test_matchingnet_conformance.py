"""Matching networks follow every rule for learners: with and without full context, on vectors and on images."""

from kshot.testing import sample_tasks, suite

conformance = suite(learner="matchingnet")
untempered = suite(learner="matchingnet", options={"temperature": 1.0})
full_context = suite(learner="matchingnet", options={"full_context": True, "steps": 3})
images = sample_tasks.classification(input_shape=(1, 16, 16))
inductive = suite(learner="matchingnet", tasks=images, options={"width": 8})
support = suite(learner="matchingnet", tasks=images, options={"width": 8, "normalisation": "support"})
transductive = suite(learner="matchingnet", tasks=images, options={"width": 8, "normalisation": "transductive"})
pictures_in_context = suite(learner="matchingnet", tasks=images, options={"width": 8, "full_context": True})
