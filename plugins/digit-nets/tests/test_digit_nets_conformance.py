"""Digit nets and networks on images of other tasks keep every rule for tasks."""

from kshot.testing import suite

dense = suite(tasks="digit-nets", options={"hidden": (4,), "images": 20, "steps": 6})
convolutional = suite(
    tasks="digit-nets", options={"hidden": (), "channels": (3,), "activation": "relu", "images": 20, "steps": 6}
)
