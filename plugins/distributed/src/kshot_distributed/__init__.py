"""A backend of several processes, started by torchrun, that train one learner."""

from kshot_distributed.distributed import Distributed

__all__ = ["Distributed"]
