"""Every refinement follows every rule for learners: on vectors, on images with conv4, and with the encoder frozen."""

from kshot.testing import sample_tasks, suite

soft = suite(learner="semi-protonet")
none = suite(learner="semi-protonet", options={"refine": "none"})
cluster = suite(learner="semi-protonet", options={"refine": "cluster"})
masked = suite(learner="semi-protonet", options={"refine": "masked"})
images = sample_tasks.classification(input_shape=(1, 16, 16), unlabelled=5)
pictures = suite(learner="semi-protonet", tasks=images, options={"width": 8})
mask_alone = suite(
    learner="semi-protonet", tasks=images, options={"width": 8, "refine": "masked", "train_encoder": False}
)
support = suite(learner="semi-protonet", tasks=images, options={"width": 8, "normalisation": "support"})
transductive = suite(learner="semi-protonet", tasks=images, options={"width": 8, "normalisation": "transductive"})
