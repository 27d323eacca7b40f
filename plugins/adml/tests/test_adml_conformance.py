"""ADML follows every rule for learners: with each attack, on vectors and images, with every normalisation."""

from kshot.testing import sample_tasks, suite

conformance = suite(learner="adml")
theta = suite(learner="adml", options={"against": "theta", "order": "first", "inner_steps": 2})
pgd = suite(learner="adml", options={"attack": "pgd", "steps": 2})
images = sample_tasks.classification(input_shape=(1, 16, 16))
transductive = suite(learner="adml", tasks=images, options={"width": 8})
on_theta = suite(learner="adml", tasks=images, options={"width": 8, "against": "theta"})
no_attack = suite(learner="adml", tasks=images, options={"width": 8, "epsilon": 0})
support = suite(learner="adml", tasks=images, options={"width": 8, "normalisation": "support"})
inductive = suite(learner="adml", tasks=images, options={"width": 8, "normalisation": "inductive"})
