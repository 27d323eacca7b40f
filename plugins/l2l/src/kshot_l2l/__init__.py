"""Learned optimizers (Andrychowicz et al. 2016), and tuned hand-designed optimizers as their baselines."""

from kshot_l2l.l2l import L2L
from kshot_l2l.torch_optimizer import Optimizer
from kshot_l2l.tuned import TunedOptimizer

__all__ = ["L2L", "Optimizer", "TunedOptimizer"]
