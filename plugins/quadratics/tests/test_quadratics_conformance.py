"""Both kinds of objectives keep every rule for tasks."""

from kshot.testing import suite

quadratics = suite(tasks="quadratics", options={"dimension": 4, "steps": 12, "score_from": 5})
digits = suite(tasks="digits-mlp", options={"hidden": 4, "images": 20, "steps": 6})
