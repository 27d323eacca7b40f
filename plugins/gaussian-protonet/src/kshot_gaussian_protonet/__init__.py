"""Gaussian prototypical networks (Fort 2017)."""

from kshot_gaussian_protonet.gaussian_protonet import GaussianProtoNet

__all__ = ["GaussianProtoNet"]
