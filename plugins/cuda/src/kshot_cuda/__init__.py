"""A backend that computes on an NVIDIA GPU."""

from kshot_cuda.cuda import Cuda

__all__ = ["Cuda"]
