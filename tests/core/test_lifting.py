"""``per_episode``: what is written for one episode does the same for B."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import kshot
from kshot import Episode, Examples, Support
from kshot.errors import TrainingError


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(2, dtype=torch.float64))

    @kshot.per_episode
    def meta_gradient(self, episode):
        loss = F.mse_loss(episode.query.x @ self.w, episode.query.y)
        return {"loss": loss, "queries": len(episode.query.y)}

    @kshot.per_episode
    def adapt(self, support):
        shift = support.y.mean()
        return lambda x: x @ self.w + shift


def episodes(b: int) -> Episode:
    g = torch.Generator().manual_seed(0)
    x, y = (torch.rand(b, 3, *s, generator=g, dtype=torch.float64) for s in ((2,), ()))
    return Episode(Support(x, y, key=torch.arange(b)), Examples(x + 1, y))


def test_the_gradient_is_the_mean_over_episodes_and_is_added():
    """By hand, on top of what was in ``.grad``."""
    learner, e = Linear(), episodes(4)
    learner.w.grad = torch.full_like(learner.w, 5.0)
    metrics = learner.meta_gradient(e)
    loss = ((e.query.x @ learner.w - e.query.y) ** 2).mean(1).mean()
    (expected,) = torch.autograd.grad(loss, learner.w)
    assert torch.allclose(learner.w.grad, expected + 5)
    assert float(metrics["loss"]) == pytest.approx(float(loss.detach()))
    assert float(metrics["queries"]) == 3


def test_predictors_are_called_one_for_each_task():
    """Each with its own support."""
    learner, e = Linear(), episodes(3)
    with torch.no_grad():
        got = learner.adapt(e.support)(e.query.x)
        assert torch.allclose(got, e.query.x @ learner.w + e.support.y.mean(1, keepdim=True))


@pytest.mark.parametrize("answer", [None, 1.0, torch.zeros(2), torch.zeros(())])
def test_a_loss_that_can_not_be_differentiated_is_refused(answer):
    """With the method's name and what was expected."""

    class Wrong(nn.Module):
        @kshot.per_episode
        def meta_gradient(self, episode):
            return answer

    with pytest.raises(TrainingError, match=r"Wrong.meta_gradient returned .*, expected the episode's loss"):
        Wrong().meta_gradient(episodes(1))
