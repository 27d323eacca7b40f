"""The toy tasks keep every rule for tasks: blobs, blobs of varying shape with class vectors, and sinusoids."""

from kshot.testing import suite

blobs = suite(tasks="toy")
varying_blobs = suite(tasks="toy", options={"way": (3, 6), "shot": (1, 4), "block": 8, "attributes": 5})
sinusoids = suite(tasks="toy-sinusoids")
