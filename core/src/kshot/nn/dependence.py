"""Whether an example's output depends on the examples beside it, found by trying and not by the names of layers.

A batch norm layer without running statistics, a normaliser that somebody wrote, attention over the batch: each lets
examples see each other, and what a result says of its queries would be wrong. A net is tried once, when an ``Encoder``
or a ``Network`` is built around it, and a learner once, before an engine evaluates it for the first time.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.dropout import _DropoutNd

from kshot.episode import Episode, map_tensors
from kshot.errors import MisfitError
from kshot.nn.normalisation import batch_norms, evaluating, is_plain
from kshot.randomness import seeded

INDEPENDENT = (
    nn.Sequential, nn.Identity, nn.Flatten, nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MaxPool1d, nn.MaxPool2d,
    nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.ReLU, nn.LeakyReLU, nn.GELU, nn.SiLU,
    nn.Tanh, nn.Sigmoid, nn.Dropout, nn.Dropout2d, nn.GroupNorm, nn.LayerNorm, nn.BatchNorm1d, nn.BatchNorm2d,
    nn.BatchNorm3d,
)  # fmt: skip
"""Layers that are known well enough: a net of these alone is not tried. Batch norm is recognised by its class."""


def depends_on_batch(net: nn.Module, input_shape: tuple[int, ...], *, training: bool) -> bool:
    """Return whether the outputs for two examples change when others are beside them.

    The net's tensors and modes are not changed, nor is torch's global random state. Nets that draw random numbers can't
    be tried in this way, nor those that raise an exception for random inputs; the answer is then False.

    Args:
        net: from examples [n, *input] to [n, ...].
        input_shape: shape of one input.
        training: whether to try the net in training mode, except its batch norm and dropout layers; else all of it is
            in evaluation mode.

    Example:
        >>> class Centred(nn.Module):
        ...     def forward(self, x):
        ...         return x - x.mean(0)
        >>> depends_on_batch(Centred(), (3,), training=False), depends_on_batch(nn.Tanh(), (3,), training=False)
        (True, False)
    """
    if all(any(is_plain(m, known) for known in INDEPENDENT) for m in net.modules()):
        return any(m.running_mean is None for m in batch_norms(net)) and not training
    modes = [(m, m.training) for m in net.modules()]
    tensors = itertools.chain(net.parameters(), net.buffers(), [torch.zeros(())])
    like = next(t for t in tensors if t.is_floating_point())
    generator = torch.Generator().manual_seed(0)
    shape = (6, *input_shape)
    # Normals, and numbers of [0, 2), as a net may take its inputs for indices, which can't be negative.
    tries = torch.randn(shape, generator=generator).to(like), torch.rand(shape, generator=generator).to(like) * 2

    def outputs(examples: Tensor, seed: int) -> Any:
        with seeded("dependence", seed, device=examples.device):
            return functional_call(net, {name: b.clone() for name, b in net.named_buffers()}, (examples,))

    def depends(x: Tensor) -> bool:
        try:
            with torch.no_grad():
                together, again, fewer = outputs(x, 0), outputs(x, 1), outputs(x[:2], 0)
        except Exception:
            return False
        known = isinstance(together, Tensor) and together.shape[:1] == x.shape[:1] and torch.equal(together, again)
        return known and together.shape[1:] == fewer.shape[1:] and differ(together[:2], fewer)

    try:
        net.train(training)
        for m in batch_norms(net) + [m for m in net.modules() if isinstance(m, _DropoutNd)]:
            m.training = False if training else m.training
        return any(map(depends, tries))
    finally:
        for m, mode in modes:
            m.training = mode


def differ(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors differ by more than rounding can explain.

    Example:
        >>> differ(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.00001]))
        False
    """
    allowed = 2e-3 if torch.finfo(a.dtype).bits >= 32 else 5e-2
    a, b = (t.detach().cpu().double().nan_to_num(0, 1e300, -1e300) for t in (a, b))
    return bool((a - b).abs().max() > allowed * torch.maximum(a.abs().max(), b.abs().max())) if a.numel() else False


_TRIED: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def check_queries(learner: Any, episodes: Episode, kind: str) -> None:
    """Check that queries do not affect each other if a learner says so, once for each learner.

    The learner adapts to the first episode and predicts its first query together with the others and alone, in full
    precision. It is not changed, nor is torch's global random state.

    Args:
        learner: satisfies ``kshot.protocols.Learner``.
        episodes: on the learner's device.
        kind: of the tasks. Only in classification and regression has each query a meaning without the others.

    Raises:
        MisfitError: ``needs.queries`` is ``independent``, but the prediction for a query depends on the others.

    Example:
        >>> from kshot.testing import sample_learner, sample_tasks
        >>> tasks = sample_tasks.classification()
        >>> check_queries(sample_learner.NearestMean(tasks.spec), tasks.sample("test", [0]), "classification")
    """
    if learner in _TRIED or learner.needs.queries != "independent" or kind not in ("classification", "regression"):
        return
    if episodes.query.x.shape[1] < 2:
        return
    # The origin, which is no tensor, has the numbers of all episodes.
    first = map_tensors(lambda t: t[:1], attrs.evolve(episodes, origin=None))
    x = first.query.x

    def predicted(inputs: Tensor, predict: Callable[[Tensor], Tensor], seed: int) -> Tensor:
        with seeded("dependence", seed, device=x.device):
            return predict(inputs)

    with torch.no_grad(), torch.autocast(x.device.type, enabled=False), evaluating(learner):
        with seeded("dependence", 0, device=x.device):
            predict = learner.adapt(first.for_adapting("independent"))
        together = predicted(x, predict, 0)
        try:
            depends = differ(together[:, :1], predicted(x[:, :1], predict, 0))
        except Exception:
            depends = True  # such as batch norm, which has no variance of one number
        # A learner that draws random numbers while predicting differs from itself too: that is another fault.
        if depends and torch.equal(together, predicted(x, predict, 1)):
            raise MisfitError(
                f"{type(learner).__name__}: got predictions for a query that depend on the other queries, expected "
                "none that do, because needs.queries is 'independent'; look for a layer that normalises by the "
                "statistics of its inputs at evaluation (batch norm with track_running_stats=False), or declare "
                "needs.queries = 'joint'"
            )
    _TRIED.add(learner)
