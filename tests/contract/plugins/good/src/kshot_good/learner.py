"""Provide a learner with one random parameter."""

import torch

from kshot.spec import Needs


class GoodLearner(torch.nn.Module):
    """Represent a learner that learns nothing but follows every rule."""

    needs = Needs(kinds=("classification",))

    def __init__(self, spec, *, scale: float = 1.0):
        super().__init__()
        self.weight = torch.nn.Parameter(scale * torch.randn(3))

    def meta_gradient(self, episodes):
        return {}

    def adapt(self, support):
        return lambda x: x
