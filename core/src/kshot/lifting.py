"""Mathematics written for one episode, lifted over the meta-batch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from kshot.episode import Episode, Support, one_task
from kshot.errors import TrainingError


def per_episode(method: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Lift a method written for one episode, without B, over the meta-batch, by a loop.

    For ``meta_gradient(self, episode)`` that returns the episode's loss (a scalar tensor), or a mapping whose
    ``loss`` is it: the mean loss is differentiated and the means are returned.
    For ``adapt(self, support)`` that returns a function from [n, *input] to predictions [n, ...]: the functions are
    called one for each task and their predictions stacked.

        @kshot.per_episode
        def meta_gradient(self, episode):
            return F.cross_entropy(self.logits(episode.support, episode.query.x), episode.query.y)
    """

    @functools.wraps(method)
    def lifted(self: Any, value: Episode | Support) -> Any:
        if isinstance(value, Episode):
            return _mean_gradient(self, method, value)
        return _stacked_predictor([method(self, one_task(value, b)) for b in range(len(value.key))])

    return lifted


def _mean_gradient(self: Any, method: Callable[[Any, Any], Any], episodes: Episode) -> Mapping[str, Tensor]:
    sums: dict[str, Tensor] = {}
    for b in range(episodes.size):
        answer = method(self, one_task(episodes, b))
        metrics = answer if isinstance(answer, Mapping) else {"loss": answer}
        loss = metrics.get("loss")
        if not isinstance(loss, Tensor) or loss.ndim != 0 or not loss.requires_grad:
            raise TrainingError(
                f"{type(self).__name__}.{method.__name__} returned {type(answer).__name__}, expected the episode's "
                "loss: a scalar tensor that depends on the parameters, or a mapping with one under 'loss'"
            )
        (loss / episodes.size).backward()  # type: ignore[no-untyped-call]
        for name, value in metrics.items():
            sums[name] = sums.get(name, torch.zeros(())) + torch.as_tensor(value).detach() / episodes.size
    return sums


def _stacked_predictor(predictors: list[Callable[[Tensor], Tensor]]) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.stack([predict(task) for predict, task in zip(predictors, x, strict=True)])
