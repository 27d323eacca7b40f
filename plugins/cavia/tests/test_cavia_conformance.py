"""CAVIA follows every rule for learners: phi beside vectors, FiLM with every normalisation, first order, no context."""

from kshot.testing import sample_tasks, suite

conformance = suite(learner="cavia")
first_order = suite(learner="cavia", options={"order": "first", "inner_steps": 3, "context": 7})
no_context = suite(
    learner="cavia",
    options={"context": 0},
    expected_failures={"learns-from-the-support": "without context parameters nothing adapts to a task"},
)
images = sample_tasks.classification(input_shape=(1, 16, 16))
transductive = suite(learner="cavia", tasks=images, options={"width": 8})
support = suite(learner="cavia", tasks=images, options={"width": 8, "normalisation": "support"})
inductive = suite(learner="cavia", tasks=images, options={"width": 8, "normalisation": "inductive"})
