"""The learner follows every rule for learners, on a stream of labels and on bits, with every controller."""

from kshot.testing import suite

conformance = suite(learner="ntm", options={"memory": {"name": "ntm-memory", "slots": 12, "width": 6}, "hidden": 12})
lstm = suite(
    learner="ntm",
    options={"memory": {"name": "ntm-memory", "slots": 12, "width": 6}, "hidden": 12, "controller": "lstm"},
)
gru = suite(
    learner="ntm",
    options={
        "memory": {"name": "ntm-memory", "slots": 12, "width": 6},
        "hidden": 12,
        "controller": "gru",
        "segment": 3,
    },
)
as_it_comes = suite(learner="ntm")
