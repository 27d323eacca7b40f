"""The backend keeps every rule for backends: on a GPU if there is one, and with the processor in its place."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import pytest
import torch

from kshot.testing import suite
from kshot_cuda import Cuda

if torch.cuda.is_available():
    conformance = suite(backend="cuda")
    bfloat16 = suite(backend="cuda", options={"precision": "bfloat16"})
else:

    @pytest.mark.skip(reason="needs an NVIDIA GPU: the rules for backends on the device itself")
    def test_rules_on_a_gpu() -> None:
        """The suites take the place of this test where there is a GPU."""


@contextmanager
def processor() -> Iterator[None]:
    """Put the processor in the place of the device."""
    facts = {
        "device_of": torch.device("cpu"),
        "device_name": "a processor",
        "has_bfloat16": True,
        "free_bytes": 1 << 30,
    }
    with ExitStack() as stack:
        for name, value in facts.items():
            stack.enter_context(mock.patch(f"kshot_cuda.cuda.{name}", return_value=value))
        yield


class OnTheProcessor(Cuda):
    """The backend with the processor as its device."""

    def __init__(self, **options: Any) -> None:
        with processor():
            super().__init__(**options)

    def place(self, x: Any) -> Any:
        """Place as on a device."""
        with processor():
            return super().place(x)

    def describe(self) -> Mapping[str, Any]:
        """Describe as on a device."""
        with processor():
            return super().describe()


stand_in = suite(backend=OnTheProcessor, options={"precision": "float32"})
stand_in_bfloat16 = suite(backend=OnTheProcessor, options={"precision": "bfloat16", "deterministic": True})
stand_in_tf32 = suite(backend=OnTheProcessor, options={"precision": "float32", "tf32": True, "resident": False})
