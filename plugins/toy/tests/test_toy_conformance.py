"""The toy tasks keep every rule for tasks: blobs of a fixed shape, and blobs of varying shape with class vectors."""

from kshot.testing import suite

blobs = suite(tasks="toy")
varying_blobs = suite(tasks="toy", options={"way": (3, 6), "shot": (1, 4), "block": 8, "attributes": 5})
