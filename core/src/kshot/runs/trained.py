"""Use a trained learner: predict the classes of new examples from a few labelled ones, without further training.

Letters: n examples, N classes, D embedding.
"""

from __future__ import annotations

import contextlib
import logging
import os
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

from kshot import episode, functional, registry
from kshot._engine import warm_start
from kshot._engine.checkpoint_state import check_tensors
from kshot._engine.evaluation import BUDGET
from kshot._engine.inputs import load_inputs
from kshot._engine.run_folder import CONFIG_FILE, RunFolder, digest, run_path
from kshot.arrays import as_inputs
from kshot.episode import Support
from kshot.errors import DataError, MisfitError, PluginError
from kshot.functional import full_precision
from kshot.nn import evaluating
from kshot.protocols import Backend, Compares, Embeds, Pooled
from kshot.registry.modules import importing
from kshot.runs.plan import Plan, build_learner, component, paths_of
from kshot.runs.predictions import Prediction, probabilities_of
from kshot.sampling import ClassificationTasks
from kshot.spec import TaskSpec

log = logging.getLogger("kshot.runs")

Prepare = Callable[[Any], Tensor]
"""A function from raw examples (paths, images, arrays) to inputs [n, *input]; see ``kshot.protocols.Pooled``."""


@frozen(eq=False)
class Threshold:
    """Store a distance threshold for "same class", and how it was chosen.

    Attributes:
        value: two examples are of the same class if their distance is at most this.
        accuracy: mean of the two fractions of genuine pairs (same class) and of imposter pairs (different classes)
            that the threshold decides correctly, on the pairs on which it was chosen.
        pairs: numbers of genuine and of imposter pairs on which it was chosen.
        split: the split that these pairs are from.

    Example:
        >>> threshold = Threshold(value=0.5, accuracy=0.95, pairs=(300, 2700), split="val")
        >>> 0.3 <= threshold.value  # two examples at distance 0.3 are of the same class
        True
    """

    value: float
    accuracy: float
    pairs: tuple[int, int]
    split: str


class Trained:
    """Predict with a trained learner of classification tasks.

    Args:
        learner: a trained learner of classification tasks.
        spec: spec of the tasks that the learner was built for.
        prepare: function from raw examples to inputs; None if examples are given as inputs already.
        backend: where to compute, by default as ``kshot.backend()`` chooses; the learner is placed there.
        tasks: the tasks from which ``threshold`` takes pairs, or a function that builds them when they are needed, or
            None.

    Raises:
        MisfitError: the tasks are not of kind classification.

    Example:
        >>> from kshot.testing import sample_learner, sample_tasks
        >>> spec = sample_tasks.classification().spec
        >>> model = Trained(sample_learner.NearestMean(spec), spec)
        >>> support = {"low": torch.zeros(2, 6), "high": torch.ones(2, 6)}
        >>> model.predict(support, torch.ones(1, 6)).labels
        ['high']
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
            raise MisfitError(f"Trained: got a learner of {spec.kind} tasks, expected one of classification tasks")
        self.learner = backend.place(learner)
        self.spec, self.backend = spec, backend
        self._tasks, self._prepare = tasks, prepare

    def __repr__(self) -> str:
        shape = list(self.spec.input_shape)
        return f"<Trained: {type(self.learner).__name__} for inputs {shape}, on {self.backend.device}>"

    @cached_property
    def tasks(self) -> Any:
        """The tasks from which ``threshold`` takes pairs, or None."""
        return self._tasks() if callable(self._tasks) else self._tasks

    @classmethod
    def of_run(
        cls, run: str | Path, *, backend: Backend | None = None, import_from: str | Path | None = None
    ) -> Trained:
        """Load the final parameters of a run: the best validated ones, or the last if it was not validated.

        The training data are not needed, except for ``threshold``, and except for tasks that can't describe how they
        prepare examples (``kshot.protocols.Portable``).

        Args:
            run: a run folder, made by ``kshot train`` or in Python.
            backend: where to compute; by default the backend of the run, or if it can't be used here, the one that
                ``kshot.backend()`` chooses, with a note.
            import_from: a folder with the network that the run names by an import path, if it is not installed.

        Raises:
            RunError: the run does not exist, has no checkpoint, or can't be built again from its folder.
            KshotError: the learner can't be built here, or the tasks can't if they are needed.
        """
        folder = run_path(run)
        plan = Plan.of_run(folder, RunFolder.open(folder).config)
        checkpoint, _, parameters = warm_start.trained(run)

        def tasks() -> Any:
            with importing(import_from, run=folder):
                return component("tasks", plan.training)

        # How inputs are prepared is read from the run folder if it is stored there, else taken from the tasks.
        prepare: Prepare | None
        if (stored := load_inputs(folder)) is not None:
            spec, prepare = stored
        else:
            if named := list(paths_of(plan)):
                log.info("note: %s names these paths: %s", folder / CONFIG_FILE, ", ".join(named))
            rebuilt = tasks()
            spec, prepare = rebuilt.spec, rebuilt.prepare if isinstance(rebuilt, Pooled) else None
        with importing(import_from, run=folder):
            learner = build_learner(plan, spec)
            backend = usable_backend(plan) if backend is None else backend
        check_tensors(checkpoint, parameters, learner)
        learner.load_state_dict(parameters)
        return cls(learner, spec, prepare=prepare, backend=backend, tasks=tasks)

    @cached_property
    def digest(self) -> str:
        """The digest of the learner's parameters and buffers; learners with the same digest predict the same."""
        return digest(self.learner.state_dict())

    def inputs(self, raw: Any) -> Tensor:
        """Return raw examples as inputs [n, *input].

        Without ``prepare``, arrays of any form are taken as ``kshot.arrays.as_inputs`` takes them: of uint8, 255
        becomes 1.

        Raises:
            DataError: there are none, they can't be read, have another shape than the learner was built for, or have
                values that are not finite or outside the range that it was trained on.
        """
        if getattr(self._prepare, "function", self._prepare) in (None, as_inputs, episode.as_inputs):
            refuse_files(raw)
        x = as_inputs(self._prepare(raw) if self._prepare is not None else raw, "inputs")
        if tuple(x.shape[1:]) != tuple(self.spec.input_shape):
            raise DataError(
                f"inputs: got shape {list(x.shape)}, expected [n, {', '.join(map(str, self.spec.input_shape))}], with "
                "examples as the learner was trained on; reshape them, or pass Trained(prepare=tasks.prepare)"
            )
        if not len(x):
            raise DataError("inputs: got no examples, expected at least one; give some")
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
        """Predict the classes of ``queries`` from a few examples of each class.

        Args:
            support: {name of a class: its raw examples}; classes may have different numbers of examples.
            queries: n raw examples. They are predicted independently, unless the learner is transductive.

        Returns:
            The class names, in the order of ``support``, and the probabilities [n, N].

        Raises:
            DataError: there are fewer than two classes, a class has no examples, or examples can't be read.
            MisfitError: the learner was trained for another number of classes and takes no other.
        """
        names = tuple(support)
        if len(names) < 2:
            raise DataError(
                f"predict: got {len(names)} classes in the support ({', '.join(names)}), expected at least two"
            )
        self.check_way(len(names))
        of_class = [self.inputs(support[name]) for name in names]
        y = torch.arange(len(names)).repeat_interleave(torch.tensor([len(examples) for examples in of_class]))
        x = self.inputs(queries)
        logits = self.logits(Support(x=torch.cat(of_class)[None], y=y[None], way=len(names)), x)
        return Prediction(names, probabilities_of(logits))

    def logits(self, support: Support, x: Tensor) -> Tensor:
        """Return logits [n, N], on the CPU, of inputs ``x`` [n, *input], given a support with B = 1."""
        # A learner that looks at all queries together must get them in one piece.
        joint = self.learner.needs.queries != "independent"
        pieces = (x,) if joint else in_pieces(x)
        with self._computing():
            if self.learner.needs.queries == "at_adapt":
                support = attrs.evolve(support, query_x=x[None])
            predictor = self.learner.adapt(self.backend.place(support))
            logits = [predictor(self.backend.place(piece[None]))[0].float().cpu() for piece in pieces]
        return torch.cat(logits)

    def embed(self, raw: Any) -> NDArray[np.float32]:
        """Return embeddings [n, D] of raw examples.

        Raises:
            MisfitError: the learner has no embedding (``kshot.protocols.Embeds``).
        """
        embeddings: NDArray[np.float32] = self._embed(self.inputs(raw)).numpy()
        return embeddings

    def distances(self, a: Any, b: Any) -> NDArray[np.float64]:
        """Return the distances [n] between raw examples ``a`` and ``b``, pair by pair.

        The learner's own distance is used if it has one (``kshot.protocols.Compares``), else the Euclidean distance of
        the embeddings.

        Raises:
            DataError: ``a`` and ``b`` have different numbers of examples.
            MisfitError: see ``embed``.
        """
        first, second = self.inputs(a), self.inputs(b)
        if len(first) != len(second):
            raise DataError(f"distances: got {len(first)} and {len(second)} examples, expected pairs")
        z = self._embed(torch.cat([first, second]))
        distances: NDArray[np.float64] = self._distance(z[: len(first)], z[len(first) :]).numpy()
        return distances

    def threshold(self, split: str = "val", *, episodes: int = 20) -> Threshold:
        """Choose the distance that best separates pairs of the same class from pairs of different classes.

        If the tasks are ``kshot.protocols.Pooled``, an episode has up to 20 classes with up to 6 examples each, or as
        many as the split has. Genuine pairs (same class) and imposter pairs (different classes) have the same total
        weight, although there are more of the latter.

        Args:
            split: the split from which pairs are taken.
            episodes: number of episodes from which pairs are taken.

        Raises:
            MisfitError: no tasks were given, or the learner has no embedding, see ``embed``.
            DataError: no episode of the split has two examples of the same class.
        """
        if self.tasks is None:
            raise MisfitError("threshold: got no tasks to take pairs from, expected Trained(..., tasks=...)")
        tasks = verification_tasks(self.tasks, split) if isinstance(self.tasks, Pooled) else self.tasks
        genuine: list[NDArray[np.float64]] = []
        imposter: list[NDArray[np.float64]] = []
        for i in range(episodes):
            episode = tasks.sample(split, [i])
            z = self._embed(torch.cat([episode.support.x, episode.query.x], 1)[0])
            y = torch.cat([episode.support.y, episode.query.y], 1)[0]
            # Every unordered pair of two different examples once.
            upper = torch.ones(len(y), len(y), dtype=torch.bool).triu(1)
            distances, same = self._distance(z[:, None], z[None]), y[:, None] == y
            genuine.append(distances[upper & same].numpy())
            imposter.append(distances[upper & ~same].numpy())
        return best_threshold(np.concatenate(genuine), np.concatenate(imposter), split)

    def _embed(self, x: Tensor) -> Tensor:
        """Return embeddings [n, D] of inputs [n, *input], on the CPU."""
        if not isinstance(self.learner, Embeds):
            raise MisfitError(
                f"embed: got a {type(self.learner).__name__}, which has no embedding; expected a learner with one "
                "(kshot.protocols.Embeds), such as protonet or siamese"
            )
        with self._computing():
            z = [full_precision(self.learner.embed(self.backend.place(piece[None])))[0] for piece in in_pieces(x)]
        return torch.cat(z).cpu()

    def _distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Return float64 distances [..] of embeddings [.., D], on the CPU: the learner's own, else Euclidean."""
        if not isinstance(self.learner, Compares):
            euclidean: Tensor = torch.linalg.vector_norm(a.double() - b.double(), dim=-1)
            return euclidean
        with self._computing():
            distance: Tensor = self.learner.distance(self.backend.place(a), self.backend.place(b))
        return distance.cpu().double()

    def check_way(self, way: int) -> None:
        """Raise MisfitError if the learner was trained for another number of classes and takes no other."""
        if not self.learner.needs.variable_way and way != self.spec.way:
            raise MisfitError(
                f"{type(self.learner).__name__}: got {way} classes in the support, expected {self.spec.way} as in "
                "training; it takes no other number"
            )

    @contextlib.contextmanager
    def _computing(self) -> Iterator[None]:
        with evaluating(self.learner), torch.no_grad(), self.backend.autocast():
            yield


def usable_backend(plan: Plan) -> Backend:
    """Return the backend of a run, or another one if its device or its plugin is missing here, with a note."""
    try:
        built: Backend = component("backend", plan.backend)
    except PluginError as error:
        built = registry.backend()
        other = built.describe().get("name")
        log.warning("note: the backend of the run can't be used here, so %s is used: %s", other, error)
    return built


def verification_tasks(tasks: Pooled, split: str) -> ClassificationTasks:
    """Return tasks with up to 20 classes and up to 6 examples of each, from the pool of a split.

    Raises:
        DataError: the split has fewer than two classes, or a class with a single example.
    """
    pool = tasks.pool(split)
    if pool.classes < 2 or pool.fewest < 2:
        raise DataError(
            f"threshold: got split {split!r} with {pool.classes} classes, the smallest with {pool.fewest} examples; "
            "expected at least 2 classes with 2 examples each to choose a threshold; use another split or give a "
            "threshold"
        )
    return ClassificationTasks({split: pool}, way=min(pool.classes, 20), shot=1, query=min(pool.fewest - 1, 5))


def refuse_files(raw: Any) -> None:
    """Raise DataError if raw examples are files, for tasks that don't say how files become inputs."""
    first = raw
    while isinstance(first, list | tuple) and first:
        first = first[0]
    if isinstance(first, str | bytes | os.PathLike):
        raise DataError(
            f"inputs: got the file {os.fsdecode(first)!r}, expected inputs as numbers: the tasks of this learner have "
            "no prepare that reads files (kshot.protocols.Pooled); give arrays, or Trained(..., prepare=...)"
        )


def in_pieces(x: Tensor) -> tuple[Tensor, ...]:
    """Split inputs [n, *input] into pieces whose activations fit the caches."""
    pieces: tuple[Tensor, ...] = torch.split(x, max(1, BUDGET // max(1, x[0].numel())))
    return pieces


def best_threshold(genuine: NDArray[np.float64], imposter: NDArray[np.float64], split: str) -> Threshold:
    """Choose the threshold by ``kshot.functional.best_threshold`` and record what it was chosen on.

    Args:
        genuine: distances of pairs of the same class [G].
        imposter: distances of pairs of different classes [I].
        split: the split that the pairs are from.

    Raises:
        DataError: there are no genuine pairs, or no imposter pairs.
    """
    if not len(genuine) or not len(imposter):
        raise DataError(
            f"threshold: got {len(genuine)} pairs of the same class and {len(imposter)} of different classes in the "
            f"episodes of split {split!r}, expected some of each; raise shot + query and way to at least 2"
        )
    value, accuracy = functional.best_threshold(torch.from_numpy(genuine), torch.from_numpy(imposter))
    return Threshold(float(value), float(accuracy), (len(genuine), len(imposter)), split)
