"""Adversarial meta-learning (Yin et al. 2018)."""

from kshot_adml.adml import ADML

__all__ = ["ADML"]
