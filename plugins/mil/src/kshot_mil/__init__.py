"""Meta-imitation learning (Finn et al. 2017): adapt a policy by gradient steps on a demonstration."""

from kshot_mil.mil import MIL
from kshot_mil.policy import Policy

__all__ = ["MIL", "Policy"]
