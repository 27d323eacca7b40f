"""The meta-LSTM follows every rule for learners: on vectors, lines and images, first and second order."""

from kshot.testing import sample_tasks, suite

small = {"hidden": (8,), "lstm": 4, "inner_steps": 2}
conformance = suite(learner="meta-lstm", options=small)
second_order = suite(learner="meta-lstm", options={**small, "order": "second"})
lines = suite(learner="meta-lstm", tasks=sample_tasks.Lines(), options={**small, "order": "second", "lstm": 0})
images = sample_tasks.classification(input_shape=(1, 16, 16))
support = suite(learner="meta-lstm", tasks=images, options={"width": 4, "lstm": 4, "inner_steps": 2})
transductive = suite(
    learner="meta-lstm",
    tasks=images,
    options={"width": 4, "lstm": 4, "inner_steps": 2, "normalisation": "transductive", "order": "second"},
)
