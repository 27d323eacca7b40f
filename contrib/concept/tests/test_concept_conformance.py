"""The learner and the view keep every rule, around several meta-learners, generators and without external examples."""

from importlib.util import find_spec

from kshot.testing import sample_learner, sample_tasks, suite
from kshot_concept import WithExternal

vectors = sample_tasks.classification(external=6)
images = sample_tasks.classification(input_shape=(1, 16, 16), external=6)
small = {"width": 8}

nearest_mean = suite(learner="concept", options={"meta": sample_learner.NearestMean, **small}, tasks=[vectors])
alone = suite(
    learner="concept",
    options={"meta": sample_learner.NearestMean, "discriminator_weight": 0.0, "generator": "identity"},
    tasks=[sample_tasks.classification()],
)
if find_spec("kshot_maml"):
    maml = suite(learner="concept", options={"meta": "maml", **small}, tasks=[vectors])
    convolutions = suite(
        learner="concept",
        options={"meta": {"name": "maml", "hidden": [8]}, "generator": "conv4", "normalisation": "support", **small},
        tasks=[images],
    )
    regression = suite(
        learner="concept",
        options={"meta": {"name": "maml", "inner_lr": 0.05}, "discriminator_weight": 0.0, **small},
        tasks=[sample_tasks.Lines()],
    )
if find_spec("kshot_metasgd"):
    metasgd = suite(learner="concept", options={"meta": "metasgd", **small}, tasks=[vectors])
if find_spec("kshot_reptile"):
    reptile = suite(learner="concept", options={"meta": "reptile", **small}, tasks=[vectors])


def view(seed: int = 0) -> WithExternal:
    """Make the view of ten classes of vectors per split, with the classes of another split as the external ones."""
    return WithExternal(sample_tasks.classification(seed=seed), sample_tasks.classification(), split="val", examples=5)


plain = suite(tasks=view)
by_name = suite(
    tasks="with-external",
    options={"of": sample_tasks.classification(way=(2, 4), block=4), "source": sample_tasks.classification()},
)
