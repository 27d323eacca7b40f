"""Gradient agreement follows every rule for learners, around the installed learners."""

from importlib.util import find_spec

from kshot.testing import sample_tasks, suite
from kshot_gradient_agreement import Outliers

tables = [sample_tasks.classification(), sample_tasks.Lines()]
if find_spec("kshot_maml"):
    maml = suite(learner="gradient-agreement", options={"inner": "maml"}, tasks=tables)
if find_spec("kshot_reptile"):
    reptile = suite(learner="gradient-agreement", options={"inner": "reptile"}, tasks=tables)

outliers = suite(tasks=Outliers(sample_tasks.classification(), every=2))
