"""Several processes, started by torchrun, train one learner."""

from kshot_distributed.distributed import Distributed

__all__ = ["Distributed"]
