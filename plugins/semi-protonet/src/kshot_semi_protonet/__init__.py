"""Semi-supervised prototypical networks (Ren et al. 2018)."""

from kshot_semi_protonet.semi_protonet import SemiProtoNet

__all__ = ["SemiProtoNet"]
