"""Predict one episode before training, to refuse a learner whose predictions don't have the shape of the tasks."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kshot._engine.modes import evaluating
from kshot._engine.processes import everywhere
from kshot._engine.states import copied, equal
from kshot.episode import Episode, slice_tasks
from kshot.errors import KshotError, MisfitError, TrainingError
from kshot.kinds import expect_shape
from kshot.protocols import Backend
from kshot.randomness import seeded
from kshot.spec import TaskSpec


def check_predictions(learner: Any, spec: TaskSpec, episodes: Episode, backend: Backend) -> None:
    """Adapt to one episode and compare the shape of the predictions with the spec; nothing is changed.

    Only tasks that are tables of examples are tried: those with environments or objectives would be played or computed.

    Args:
        episodes: at least one episode of the tasks that the learner is trained on.

    Raises:
        MisfitError: the predictions have another shape than targets or classes, or the learner can't predict at all.
            An error of kshot that the learner raises is passed on.
    """
    if spec.kind not in ("classification", "regression", "sequence"):
        return
    with _unchanged(learner, backend), torch.no_grad(), backend.autocast():
        try:
            episode = backend.place(slice_tasks(episodes, 0, 1))
            predictor = learner.adapt(episode.for_adapting(learner.needs.queries))
            predictions = predictor(episode.query.x)
        except KshotError as error:
            raise everywhere(error) from None
        except Exception as error:  # whatever a learner or its network raises
            raise everywhere(
                MisfitError(
                    f"{type(learner).__name__}: got {type(error).__name__} while it predicted one training episode: "
                    f"{error}; expected predictions; look at its network and its options; nothing was trained"
                )
            ) from error
    if not isinstance(predictions, Tensor):
        return
    y = episode.query.y
    # What each kind's scorer requires; how many labels a sequence has is the learner's own choice.
    shape = tuple(y.shape)
    if spec.kind == "classification":
        shape = (*shape, episode.support.way or 0)
    elif spec.kind == "sequence" and not y.is_floating_point():
        shape = (*shape, predictions.shape[-1] if predictions.ndim else 0)
    try:
        expect_shape(predictions, shape, spec.kind)
    except TrainingError as error:
        raise everywhere(
            MisfitError(
                f"{type(learner).__name__}: got tasks that its network does not fit: {error}; expected a network "
                "whose outputs have the shape of one target, or one number for each class; nothing was trained"
            )
        ) from error


@contextmanager
def _unchanged(learner: Any, backend: Backend) -> Iterator[None]:
    """Keep modes, buffers, extra state of modules and global random states as they are, whatever the block does."""
    parameters = {name for name, _ in learner.named_parameters()}
    before = {name: copied(value) for name, value in learner.state_dict().items() if name not in parameters}
    python, numpy = random.getstate(), np.random.get_state()
    device = torch.device(backend.device)
    try:
        with evaluating(learner), seeded("trial", device=device):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        now = learner.state_dict()
        if not all(name in now and equal(now[name], value) for name, value in before.items()):
            learner.load_state_dict({**now, **before})
