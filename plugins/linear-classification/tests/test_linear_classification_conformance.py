"""The tasks keep every rule for tasks: by default, and with all options and varying numbers of examples."""

from kshot.testing import suite

hyperplanes = suite(tasks="linear-classification")
harder = suite(
    tasks="linear-classification",
    options={
        "shot": (1, 4),
        "query": (3, 6),
        "block": 8,
        "dimensions": 12,
        "subspace": 1,
        "spread": 0.3,
        "margin": 0.2,
        "noise": 0.1,
    },
)
