"""Prototypical networks (Snell, Swersky & Zemel 2017)."""

from kshot_protonet.protonet import ProtoNet

__all__ = ["ProtoNet"]
