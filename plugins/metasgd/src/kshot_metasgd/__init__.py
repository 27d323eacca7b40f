"""Meta-SGD (Li, Zhou, Chen & Li 2017): MAML with a learned step size for every element of the parameters."""

from kshot_metasgd.metasgd import MetaSGD

__all__ = ["MetaSGD"]
