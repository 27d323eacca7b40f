"""Matching networks (Vinyals et al. 2016)."""

from kshot_matchingnet.matchingnet import MatchingNet

__all__ = ["MatchingNet"]
