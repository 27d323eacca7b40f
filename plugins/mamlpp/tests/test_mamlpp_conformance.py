"""MAML++ follows every rule for learners: on vectors, lines and images with every normalisation, and first order."""

from kshot.testing import sample_tasks, suite

conformance = suite(learner="mamlpp")
annealed = suite(learner="mamlpp", options={"inner_steps": 2, "first_order_iterations": 5})
images = sample_tasks.classification(input_shape=(1, 16, 16))
small = {"width": 4, "inner_steps": 2}
transductive = suite(learner="mamlpp", tasks=images, options=small)
support = suite(learner="mamlpp", tasks=images, options={**small, "normalisation": "support"})
inductive = suite(learner="mamlpp", tasks=images, options={**small, "normalisation": "inductive"})
