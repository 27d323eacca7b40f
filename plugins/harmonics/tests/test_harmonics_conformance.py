"""The harmonics keep every rule for tasks: by default, and with noise and varying numbers of points."""

from kshot.testing import suite

waves = suite(tasks="harmonics")
noisy = suite(tasks="harmonics", options={"shot": (4, 20), "query": (5, 8), "block": 8, "noise": 0.1})
