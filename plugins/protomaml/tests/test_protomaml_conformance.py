"""Proto-MAML follows every rule for learners: on vectors and images with every normalisation, and in both orders."""

from kshot.testing import sample_tasks, suite

conformance = suite(learner="protomaml", options={"inner_steps": 2})
second_order = suite(learner="protomaml", options={"order": "second", "inner_steps": 2})
images = sample_tasks.classification(input_shape=(1, 16, 16))
small = {"width": 8, "inner_steps": 1}
transductive = suite(learner="protomaml", tasks=images, options=small)
support = suite(learner="protomaml", tasks=images, options={**small, "normalisation": "support"})
inductive = suite(learner="protomaml", tasks=images, options={**small, "normalisation": "inductive"})
