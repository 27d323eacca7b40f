"""A backend that computes on a GPU of NVIDIA."""

from kshot_cuda.cuda import Cuda

__all__ = ["Cuda"]
