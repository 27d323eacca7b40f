"""Encoders of pictures of OpenCLIP, and classifiers of pictures by the names of classes."""

from kshot_openclip.encoder import openclip
from kshot_openclip.zero_shot import zero_shot

__all__ = ["openclip", "zero_shot"]
