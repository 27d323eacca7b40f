"""MIL follows every rule for learners, with each of its options, on demonstrations and on labelled tasks."""

from kshot.testing import sample_tasks, suite

conformance = suite(learner="mil")
heads = suite(learner="mil", options={"two_heads": True, "bias": 5, "inner_steps": 2})
observations = suite(
    learner="mil",
    options={"demonstrations": "observations"},
    expected_failures={
        "learns-from-the-support": "only the targets tell the kit's tasks apart, and this learner ignores targets"
    },
)
demonstrations = suite(learner="mil", tasks=sample_tasks.Demonstrations(), options={"bias": 5})
discrete = suite(learner="mil", tasks=sample_tasks.Demonstrations(discrete=True))
images = sample_tasks.classification(input_shape=(1, 16, 16))
normalised = suite(learner="mil", tasks=images, options={"width": 8, "normalisation": "support", "two_heads": True})
