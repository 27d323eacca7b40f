"""Model-agnostic meta-learning (Finn, Abbeel & Levine 2017), second and first order."""

from kshot_maml.maml import MAML

__all__ = ["MAML"]
