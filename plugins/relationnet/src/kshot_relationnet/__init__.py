"""Relation networks (Sung et al. 2018)."""

from kshot_relationnet.relationnet import RelationNet

__all__ = ["RelationNet"]
