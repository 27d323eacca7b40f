"""Run a method that is written for one episode for all B episodes of a meta-batch, by a loop.

Letters: B meta-batch, n examples.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from attrs import frozen
from torch import Tensor

from kshot.episode import Begins, Episode, Support, one_task
from kshot.errors import TrainingError


def per_episode(method: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Turn a method for one episode, whose tensors have no axis B, into a method for a meta-batch, by a loop.

    It can decorate two methods of a learner:

    - ``meta_gradient(self, episode)``. The method returns the loss of the episode, as a scalar tensor or in a mapping
      of metrics under ``loss``. The decorated method adds the gradient of the mean loss to ``.grad`` and returns the
      mean of each metric.
    - ``adapt(self, support)``. The method returns a function from [n, *input] to predictions [n, ...]. The decorated
      method returns a function from [B, n, *input] to [B, n, ...], which calls the function of each task and stacks
      the predictions.

    Raises:
        TrainingError: (by the decorated ``meta_gradient``) the result contains no scalar loss that depends on the
            parameters.

    Example:
        >>> from kshot.testing import sample_tasks
        >>> class Slope(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.w = torch.nn.Parameter(torch.zeros(2))
        ...     @per_episode
        ...     def meta_gradient(self, episode):
        ...         return (episode.query.x @ self.w - episode.query.y).square().mean()
        >>> learner = Slope()
        >>> sorted(learner.meta_gradient(sample_tasks.Lines().sample("train", range(4))))
        ['loss']
        >>> tuple(learner.w.grad.shape)
        (2,)
    """

    @functools.wraps(method)
    def lifted(self: Any, value: Episode | Support) -> Any:
        # The type of the argument shows which method is decorated: ``meta_gradient`` is called with an episode, and
        # ``adapt`` with a support.
        if isinstance(value, Episode):
            return _mean_gradient(self, method, value)
        return _stacked_predictor([method(self, one_task(value, b)) for b in range(len(value.key))])

    return lifted


def _mean_gradient(self: Any, method: Callable[[Any, Any], Any], episodes: Episode) -> Mapping[str, Tensor]:
    """Add the gradient of the mean loss over the episodes to ``.grad``; return the mean of each metric."""
    sums: dict[str, Tensor] = {}
    for b in range(episodes.size):
        # The gradient of each episode is computed before the next episode, so only one graph is in memory.
        result = method(self, one_task(episodes, b))
        metrics = result if isinstance(result, Mapping) else {"loss": result}
        loss = metrics.get("loss")
        if not isinstance(loss, Tensor) or loss.ndim != 0 or not loss.requires_grad:
            raise TrainingError(
                f"{type(self).__name__}.{method.__name__}: got {type(result).__name__}, expected the episode's loss, a "
                "scalar tensor that depends on the parameters, or a mapping with one under 'loss'; return one of them"
            )
        (loss / episodes.size).backward()
        for name, value in metrics.items():
            sums[name] = sums.get(name, torch.zeros(())) + torch.as_tensor(value).detach() / episodes.size
    return sums


def _stacked_predictor(predictors: list[Callable[[Tensor], Tensor]]) -> Callable[[Tensor], Tensor]:
    """Combine the predictors of B tasks, each [n, *input] -> [n, ...], to one: [B, n, *input] -> [B, n, ...]."""

    def stacked(x: Tensor) -> Tensor:
        return torch.stack([predict(task) for predict, task in zip(predictors, x, strict=True)])

    # In control tasks a predictor is a policy. Some policies have a method ``begin``, which starts a rollout.
    return _StackedPolicies(stacked, predictors) if all(isinstance(p, Begins) for p in predictors) else stacked


@frozen(eq=False)
class _StackedPolicies:
    """Represent the policies of B tasks as one policy. Each task keeps its own random numbers and its own memory."""

    stacked: Callable[[Tensor], Tensor]
    policies: list[Any]

    def __call__(self, x: Tensor) -> Tensor:
        return self.stacked(x)

    def begin(self, key: Tensor, shape: tuple[int, int]) -> Callable[[Tensor], Tensor]:
        """Begin a rollout in every task: the policy of task b gets ``key[b]``, the random key of its episode."""
        return _stacked_predictor([p.begin(k, shape) for p, k in zip(self.policies, key, strict=True)])
