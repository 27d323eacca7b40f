"""Control tasks of multi-armed Bernoulli bandits, played for all tasks of a meta-batch at once."""

from kshot_bandits.tasks import Bandits, Environment

__all__ = ["Bandits", "Environment"]
