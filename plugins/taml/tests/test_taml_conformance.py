"""TAML follows every rule for learners: by entropy, and by inequalities of the losses before and after adapting."""

from kshot.testing import sample_tasks, suite

conformance = suite(learner="taml")
after = suite(learner="taml", options={"measure": "gini", "losses": "after", "order": "first", "inner_steps": 2})
vectors = sample_tasks.classification()
entropy = suite(learner="taml", tasks=vectors, options={"measure": "entropy", "weight": 1.0})
images = sample_tasks.classification(input_shape=(1, 16, 16))
transductive = suite(learner="taml", tasks=images, options={"width": 8, "measure": "entropy"})
inductive = suite(learner="taml", tasks=images, options={"width": 8, "normalisation": "inductive"})
