"""MAML and Meta-SGD for reinforcement learning (Finn, Abbeel & Levine 2017, section 5.3; Li, Zhou, Chen & Li 2017)."""

from kshot_maml_rl.maml_rl import MamlRL
from kshot_maml_rl.metasgd_rl import MetaSGDRL

__all__ = ["MamlRL", "MetaSGDRL"]
