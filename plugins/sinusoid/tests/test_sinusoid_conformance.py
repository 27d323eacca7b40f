"""The sinusoid tasks keep every rule for tasks, with and without noise and outliers."""

from kshot.testing import suite

waves = suite(tasks="sinusoid")
harder = suite(tasks="sinusoid", options={"shot": 5, "noise": 0.1, "outlier_every": 3})
