"""The linear probe follows every rule for learners: on vectors, with a fixed penalty, and on images with conv4."""

from kshot.testing import sample_tasks, suite

conformance = suite(learner="linear-probe")
fixed = suite(learner="linear-probe", options={"penalty": 0.1})
images = sample_tasks.classification(input_shape=(1, 16, 16), shot=2)
conv4 = suite(learner="linear-probe", tasks=images, options={"encoder": "conv4", "width": 8})
