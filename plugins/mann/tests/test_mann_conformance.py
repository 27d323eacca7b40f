"""Both learners follow every rule for learners, on streams, bits and classification, with and without key
strength, and with every controller."""

from kshot.testing import suite

mann = suite(learner="mann", options={"hidden": 12, "slots": 6, "width": 5, "reads": 2})
strength = suite(
    learner="mann",
    options={"hidden": 12, "slots": 6, "width": 5, "reads": 2, "memory": {"name": "lrua-memory", "strength": 10.0}},
)
gru = suite(
    learner="mann",
    options={"hidden": 12, "slots": 6, "width": 5, "reads": 2, "controller": "gru", "segment": 3},
)
feedforward = suite(
    learner="mann",
    options={"hidden": 12, "slots": 6, "width": 5, "reads": 2, "controller": "feedforward"},
)
lstm = suite(learner="lstm", options={"hidden": 12})
