"""The backend keeps every rule for backends: on a GPU if there is one, and with the processor in its place."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import pytest
import torch

from kshot.testing import suite
from kshot_mps import Mps

if torch.backends.mps.is_available():
    conformance = suite(backend="mps")
    bfloat16 = suite(backend="mps", options={"precision": "bfloat16"})
else:

    @pytest.mark.skip(reason="needs a Mac with a GPU: the rules for backends on the device itself")
    def test_rules_on_a_gpu() -> None:
        """The suites take the place of this test where there is a GPU."""


def same(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor of any type."""
    return tensor


@contextmanager
def processor() -> Iterator[None]:
    """Put the processor in the place of the device."""
    facts = {"device": torch.device("cpu"), "free_bytes": 1 << 30}
    with ExitStack() as stack:
        for name, value in facts.items():
            stack.enter_context(mock.patch(f"kshot_mps.mps.{name}", return_value=value))
        # The rules exchange float64 tensors, which the processor has.
        stack.enter_context(mock.patch("kshot_mps.mps.check_type", new=same))
        yield


class OnTheProcessor(Mps):
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
stand_in_bfloat16 = suite(backend=OnTheProcessor, options={"precision": "bfloat16", "resident": False})
