"""MAML for reinforcement learning (Finn, Abbeel & Levine 2017, section 5.3)."""

from kshot_maml_rl.maml_rl import MamlRL

__all__ = ["MamlRL"]
