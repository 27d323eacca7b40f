"""Transductive information maximisation (Boudiaf et al. 2020)."""

from kshot_tim.tim import TIM

__all__ = ["TIM"]
