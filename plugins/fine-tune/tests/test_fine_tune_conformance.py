"""Fine-tuning follows every rule for learners: on embeddings, with an encoder on vectors, and with conv4 on images."""

from kshot.testing import sample_tasks, suite

few = {"head_steps": 3, "alone": 2, "steps": 2}
conformance = suite(learner="fine-tune", options=few)
embeddings = suite(learner="fine-tune", options={"encoder": "identity", "head_steps": 5})
images = sample_tasks.classification(input_shape=(1, 16, 16), shot=2)
conv4 = suite(learner="fine-tune", tasks=images, options={"width": 8, **few})
