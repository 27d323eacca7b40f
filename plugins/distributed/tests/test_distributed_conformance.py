"""The distributed backend keeps every rule for backends, in a world of one process (of two: test_distributed.py)."""

import os
from typing import Any
from unittest import mock

import kshot
from kshot import Backend
from kshot.testing import suite


def alone(local: Backend | str = "cpu") -> Any:
    """Set the environment as torchrun does for a single process, with any free port."""
    given = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    with mock.patch.dict(os.environ, given):
        return kshot.backend("distributed", local=local)


conformance = suite(backend=alone)
bfloat16 = suite(backend=alone, options={"local": {"name": "cpu", "precision": "bfloat16"}})
