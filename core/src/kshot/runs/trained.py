"""A trained learner in use: a few labelled examples in, predictions for new ones out, without a loop.

Letters: n examples, N classes, D embedding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from attrs import frozen
from numpy.typing import NDArray
from torch import Tensor

from kshot import functional, registry
from kshot._engine import warm_start
from kshot._engine.evaluation import BUDGET
from kshot._engine.inputs import load_inputs
from kshot._engine.run_folder import RunFolder, digest
from kshot.arrays import as_inputs
from kshot.episode import Support
from kshot.errors import DataError, MisfitError
from kshot.functional import full_precision
from kshot.nn import evaluating
from kshot.protocols import Backend, Compares, Embeds, Pooled
from kshot.registry.modules import importing
from kshot.runs.plan import Plan, build_learner, component
from kshot.sampling import ClassificationTasks
from kshot.spec import TaskSpec

Prepare = Callable[[Any], Tensor]
"""Raw examples (paths, images, arrays) -> inputs [n, *input], see ``kshot.protocols.Pooled``."""


@frozen(eq=False)
class Prediction:
    """Classes of new examples.

    Attributes:
        names: of the classes [N].
        probabilities: of each example [n, N], float64; rows sum to 1.
    """

    names: tuple[str, ...]
    probabilities: NDArray[np.float64]

    @property
    def labels(self) -> list[str]:
        """The most probable class of each example [n]."""
        return [self.names[i] for i in self.probabilities.argmax(1)]


@frozen(eq=False)
class Threshold:
    """Where "the same" ends.

    Attributes:
        value: pairs at most this far apart count as of one class.
        accuracy: mean of the shares of genuine and of imposter pairs that it got right where it was chosen.
        pairs: genuine and imposter pairs that it was chosen on.
        split: theirs.
    """

    value: float
    accuracy: float
    pairs: tuple[int, int]
    split: str


class Trained:
    """A learner with its parameters, and how raw examples become its inputs.

    Args:
        learner: a trained one, of classification tasks.
        spec: of the tasks it was built for.
        prepare: raw examples -> inputs; by default they must be inputs already.
        backend: where to compute; the learner is placed there.
        tasks: that ``threshold`` chooses pairs from, or a function that makes them when they are needed, or None.
    """

    def __init__(
        self,
        learner: Any,
        spec: TaskSpec,
        *,
        prepare: Prepare | None = None,
        backend: Backend | None = None,
        tasks: Any = None,
    ) -> None:
        if backend is None:
            backend = registry.backend()
        if spec.kind != "classification":
            raise MisfitError(
                f"the learner was trained on {spec.kind} tasks; predictions on files need one of classification tasks"
            )
        self.learner = backend.place(learner)
        self.spec, self.backend = spec, backend
        self._tasks, self._prepare = tasks, prepare

    @cached_property
    def tasks(self) -> Any:
        """The tasks that ``threshold`` chooses pairs from, or None."""
        return self._tasks() if callable(self._tasks) else self._tasks

    @classmethod
    def of_run(
        cls, run: str | Path, *, backend: Backend | None = None, import_from: str | Path | None = None
    ) -> Trained:
        """Load what a run ended with: its best validated parameters, else its last.

        The data it was trained on need not be here, except for ``threshold``, and except for tasks that can't write
        down how they prepare examples (``kshot.protocols.Portable``).

        Args:
            run: a run folder, made by ``kshot train`` or in Python.
            backend: where to compute; by default the run's own.
            import_from: a folder with the network that the run names by an import path, if it is not installed.

        Raises:
            RunError: there is no such run, it has no checkpoint, or it can't be built again from its folder.
            KshotError: its learner, or its tasks if they are needed, can't be built here.
        """
        folder = Path(run)
        plan = Plan.of_run(folder, RunFolder.open(folder).config)
        _, _, parameters = warm_start.trained(run)

        def tasks() -> Any:
            with importing(import_from, run=folder):
                return component("tasks", plan.training)

        prepare: Prepare | None
        if (written := load_inputs(folder)) is not None:
            spec, prepare = written
        else:
            there = tasks()
            spec, prepare = there.spec, there.prepare if isinstance(there, Pooled) else None
        with importing(import_from, run=folder):
            learner = build_learner(plan, spec)
            used = component("backend", plan.backend) if backend is None else backend
        learner.load_state_dict(parameters)
        return cls(learner, spec, prepare=prepare, backend=used, tasks=tasks)

    @cached_property
    def digest(self) -> str:
        """Of the learner's parameters and buffers: two with the same predict the same."""
        return digest(self.learner.state_dict())

    def inputs(self, raw: Any) -> Tensor:
        """Return raw examples as inputs [n, *input].

        Without ``prepare``, arrays of any form are taken as ``kshot.arrays.as_inputs`` takes them: of uint8, 255
        becomes 1.

        Raises:
            DataError: they can't be read, have another shape than the learner was built for, or have values that are
                not finite or outside the range that it was trained on.
        """
        x = as_inputs(self._prepare(raw) if self._prepare is not None else raw, "inputs")
        if tuple(x.shape[1:]) != tuple(self.spec.input_shape):
            raise DataError(
                f"inputs: got shape {list(x.shape)}, expected [n, {', '.join(map(str, self.spec.input_shape))}], with "
                "examples as the learner was trained on; reshape them, or pass Trained(prepare=tasks.prepare)"
            )
        if self.spec.input_range is not None and x.numel():
            low, high = float(x.min()), float(x.max())
            least, greatest = self.spec.input_range
            if low < least - 1e-6 or high > greatest + 1e-6:
                raise DataError(
                    f"inputs: got values in [{low:.4g}, {high:.4g}], expected them in {[least, greatest]}, as the "
                    "learner was trained on; scale them (pictures of 0 to 255: divide by 255), or pass "
                    "Trained(prepare=tasks.prepare)"
                )
        return x

    def predict(self, support: Mapping[str, Any], queries: Any) -> Prediction:
        """Classes of ``queries`` by a few examples of each.

        Args:
            support: class name -> its raw examples; classes may have different numbers of them.
            queries: raw examples. They are predicted independently, unless the learner is transductive.

        Raises:
            DataError: fewer than two classes, a class without examples, or unreadable ones.
            MisfitError: the learner takes another number of classes.
        """
        names = tuple(support)
        if len(names) < 2:
            raise DataError(f"the support has {len(names)} classes ({', '.join(names)}), expected at least two")
        self.check_way(len(names))
        parts = [self.inputs(support[name]) for name in names]
        y = torch.arange(len(names)).repeat_interleave(torch.tensor([len(part) for part in parts]))
        x = self.inputs(queries)
        logits = self.logits(Support(x=torch.cat(parts)[None], y=y[None], way=len(names)), x)
        return Prediction(names, torch.softmax(logits.double(), -1).numpy())

    def logits(self, support: Support, x: Tensor) -> Tensor:
        """Logits [n, N] of inputs ``x`` [n, *input], given a support of B = 1, on the CPU."""
        joint = self.learner.needs.queries != "independent"
        pieces = (x,) if joint else in_pieces(x)
        with self._computing():
            if self.learner.needs.queries == "at_adapt":
                support = attrs.evolve(support, query_x=x[None])
            predictor = self.learner.adapt(self.backend.place(support))
            made = [predictor(self.backend.place(piece[None]))[0].float().cpu() for piece in pieces]
        return torch.cat(made)

    def embed(self, raw: Any) -> NDArray[np.float32]:
        """Embeddings [n, D] of raw examples.

        Raises:
            MisfitError: the learner has no embedding (``kshot.protocols.Embeds``).
        """
        made: NDArray[np.float32] = self._embed(self.inputs(raw)).numpy()
        return made

    def distances(self, a: Any, b: Any) -> NDArray[np.float64]:
        """Distances [n] of raw examples ``a`` and ``b``, pair by pair.

        They are the learner's own (``kshot.protocols.Compares``), or else Euclidean ones of the embeddings.

        Raises:
            DataError: there are not as many of one as of the other.
            MisfitError: see ``embed``.
        """
        first, second = self.inputs(a), self.inputs(b)
        if len(first) != len(second):
            raise DataError(f"distances: {len(first)} examples and {len(second)}; expected pairs")
        z = self._embed(torch.cat([first, second]))
        made: NDArray[np.float64] = self._apart(z[: len(first)], z[len(first) :]).numpy()
        return made

    def threshold(self, split: str = "val", *, episodes: int = 20) -> Threshold:
        """The distance that best tells pairs of one class from pairs of two, on episodes of ``split``.

        Where the tasks are ``Pooled`` an episode has up to 20 classes with up to 6 examples, as many as the split
        holds: it need not hold what was trained with. Genuine and imposter pairs weigh the same in all, though there
        are more of the latter.

        Raises:
            MisfitError: there are no tasks, or see ``embed``.
            DataError: the split has no two examples of one class in an episode.
        """
        if self.tasks is None:
            raise MisfitError("threshold: there are no tasks to choose pairs from; give Trained(tasks=...)")
        tasks = held_by(self.tasks, split) if isinstance(self.tasks, Pooled) else self.tasks
        near: list[NDArray[np.float64]] = []
        far: list[NDArray[np.float64]] = []
        for i in range(episodes):
            episode = tasks.sample(split, [i])
            z = self._embed(torch.cat([episode.support.x, episode.query.x], 1)[0])
            y = torch.cat([episode.support.y, episode.query.y], 1)[0]
            upper = torch.ones(len(y), len(y), dtype=torch.bool).triu(1)
            apart, same = self._apart(z[:, None], z[None]), y[:, None] == y
            near.append(apart[upper & same].numpy())
            far.append(apart[upper & ~same].numpy())
        return best_threshold(np.concatenate(near), np.concatenate(far), split)

    def _embed(self, x: Tensor) -> Tensor:
        if not isinstance(self.learner, Embeds):
            raise MisfitError(
                f"{type(self.learner).__name__} has no embedding (kshot.protocols.Embeds); expected a learner that "
                "has, such as protonet or siamese"
            )
        with self._computing():
            made = [full_precision(self.learner.embed(self.backend.place(p[None])))[0] for p in in_pieces(x)]
        return torch.cat(made).cpu()

    def _apart(self, a: Tensor, b: Tensor) -> Tensor:
        if not isinstance(self.learner, Compares):
            euclidean: Tensor = torch.linalg.vector_norm(a.double() - b.double(), dim=-1)
            return euclidean
        with self._computing():
            made: Tensor = self.learner.distance(self.backend.place(a), self.backend.place(b))
        return made.double().cpu()

    def check_way(self, way: int) -> None:
        """Raises MisfitError where the learner takes another number of classes."""
        if not self.learner.needs.variable_way and way != self.spec.way:
            raise MisfitError(
                f"the support has {way} classes, but {type(self.learner).__name__} was trained for {self.spec.way} and "
                "takes no other number"
            )

    @contextlib.contextmanager
    def _computing(self) -> Iterator[None]:
        with evaluating(self.learner), torch.no_grad(), self.backend.autocast():
            yield


def held_by(tasks: Pooled, split: str) -> ClassificationTasks:
    """Episodes of up to 20 classes with up to 6 examples of each, over the pool of a split.

    Raises:
        DataError: the split has no two classes, or a class without a pair.
    """
    pool = tasks.pool(split)
    if pool.classes < 2 or pool.fewest < 2:
        raise DataError(
            f"split {split!r} has {pool.classes} classes, the smallest of {pool.fewest} examples; expected at least 2 "
            "classes with 2 examples each to choose a threshold on: give one"
        )
    return ClassificationTasks({split: pool}, way=min(pool.classes, 20), shot=1, query=min(pool.fewest - 1, 5))


def in_pieces(x: Tensor) -> tuple[Tensor, ...]:
    """Inputs [n, *input] in pieces whose activations fit the caches."""
    made: tuple[Tensor, ...] = torch.split(x, max(1, BUDGET // max(1, x[0].numel())))
    return made


def best_threshold(near: NDArray[np.float64], far: NDArray[np.float64], split: str) -> Threshold:
    """Choose the threshold by ``kshot.functional.best_threshold`` and record what it was chosen on.

    Args:
        near: distances of pairs of the same class [G].
        far: distances of pairs of two classes [I].
        split: the split that the pairs are from.

    Raises:
        DataError: there are no pairs of one kind.
    """
    if not len(near) or not len(far):
        raise DataError(
            f"the episodes of split {split!r} have {len(near)} pairs of one class and {len(far)} of two; expected some "
            "of each: raise shot + query to at least 2, and way to at least 2"
        )
    value, accuracy = functional.best_threshold(torch.from_numpy(near), torch.from_numpy(far))
    return Threshold(float(value), float(accuracy), (len(near), len(far)), split)
