"""The tasks keep every rule for tasks, on the subset that is in the package."""

import kshot

embedded = kshot.testing.suite(tasks="omniglot", options={"protocol": "embedded", "way": 5, "shot": 1, "query": 3})
