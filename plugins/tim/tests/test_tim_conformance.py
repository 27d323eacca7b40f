"""TIM follows every rule for learners, by both methods. Few steps of a high rate keep the tests quick."""

from kshot.testing import sample_tasks, suite

conformance = suite(learner="tim", options={"steps": 10, "lr": 0.01})
adm = suite(learner="tim", options={"method": "adm", "steps": 10})
images = sample_tasks.classification(input_shape=(1, 16, 16))
conv4 = suite(learner="tim", tasks=images, options={"encoder": "conv4", "width": 8, "steps": 5})
