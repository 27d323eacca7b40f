"""A classifier of a user's own classes: made from a few examples without training, and stored in one small file.

Letters: n examples, N classes, D numbers of an input.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from attrs import frozen
from numpy.typing import NDArray
from torch import Tensor

from kshot import registry
from kshot.episode import Support
from kshot.errors import DataError, OptionError
from kshot.preparing import Preparation
from kshot.runs.confidence import conformal_quantile, share_interval, temperature
from kshot.runs.predictions import Prediction
from kshot.spec import TaskSpec

AT_ONCE = 1 << 24
"""Numbers of inputs that are adapted to at once, when each example is left out in turn."""


@frozen(eq=False)
class Answer(Prediction):
    """Store the predicted classes of new examples, and which classes are plausible for each.

    Attributes:
        names: names of the N classes.
        probabilities: float64 array [n, N], the calibrated probability of each class, if it is one of them.
        plausible: bool array [n, N]: the classes of which the example is not unusual. For examples of the N classes
            they include the right one with the probability ``coverage``. An example of which no class is plausible is
            probably of none of these.
        coverage: the stated probability.

    Example:
        >>> answer = Answer(("cat", "dog"), np.array([[0.9, 0.1]]), np.array([[False, False]]), 0.9)
        >>> answer.labels, answer.known.tolist()
        (['cat'], [False])
    """

    plausible: NDArray[np.bool_]
    coverage: float

    @property
    def known(self) -> NDArray[np.bool_]:
        """Whether any class is plausible [n]."""
        return np.asarray(self.plausible.any(1))


@frozen
class Estimate:
    """Store how many of the examples a classifier predicts correctly that has not seen them.

    Attributes:
        correct: number of examples whose class was predicted correctly when they were left out.
        total: number of examples that could be left out.

    Example:
        >>> print(Estimate(18, 20))
        90 % of 20 examples, each left out in turn (95 % interval: 70 to 97 %)
    """

    correct: int
    total: int

    def __str__(self) -> str:
        low, high = (f"{100 * share:.0f}" for share in share_interval(self.correct, self.total))
        share = f"{100 * self.correct / self.total:.0f} % of {self.total} examples"
        return f"{share}, each left out in turn (95 % interval: {low} to {high} %)"


@frozen(eq=False)
class Classifier:
    """Classify new examples by a few labelled ones; make one with ``fitted``.

    Attributes:
        names: names of the N classes.
        x: inputs of the labelled examples, such as embeddings [n, D].
        y: their classes [n].
        files: a name for each example.
        preparation: how files become inputs; None if inputs are given as numbers.
        learner: the learner that adapts to the examples, ``{"name": ..., **options}``; None for the nearest mean of a
            class at unit length.
        temperature: by which logits are divided before the softmax.
        unusual: how unusual each example is for its own class when it is left out, see ``unusualness`` [m].
        estimate: of the accuracy, or None if no example can be left out.
        left_out: the predicted class of each example that was left out, else -1 [n].

    Example:
        >>> x, y = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.2, 0.8]]), torch.tensor([0, 0, 1, 1])
        >>> classifier = fitted(x, y, ["right", "up"])
        >>> classifier.predict(torch.tensor([[0.1, 2.0]])).labels
        ['up']
    """

    names: tuple[str, ...]
    x: Tensor
    y: NDArray[np.int64]
    files: tuple[str, ...]
    preparation: Preparation | None
    learner: Mapping[str, Any] | None
    temperature: float
    unusual: NDArray[np.float64]
    estimate: Estimate | None
    left_out: NDArray[np.int64]

    def inputs(self, raw: Any) -> Tensor:
        """Return raw examples as inputs [n, D], as the labelled examples were prepared.

        Raises:
            DataError: they can't be prepared, or inputs have another shape.
        """
        x = raw if self.preparation is None else self.preparation(raw)
        if not isinstance(x, Tensor) or tuple(x.shape[1:]) != tuple(self.x.shape[1:]):
            got = f"shape {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise DataError(f"classifier: got inputs of {got}, expected [n, {', '.join(map(str, self.x.shape[1:]))}]")
        return x.float()

    def predict(self, raw: Any, *, coverage: float = 0.9) -> Answer:
        """Predict the classes of new examples.

        Args:
            raw: examples, such as paths; or inputs [n, D] if there is no preparation.
            coverage: the probability with which the plausible classes of an example of the N classes include the right
                one. With too few examples, all classes are plausible.

        Raises:
            OptionError: ``coverage`` is not between 0 and 1.
            DataError: see ``inputs``.
        """
        if not 0 < coverage < 1:
            raise OptionError(f"predict: got coverage {coverage}, expected a number between 0 and 1, such as 0.9")
        x = self.inputs(raw)
        way = len(self.names)
        d = distances(self.x, self.y, x, way)
        if self.learner is None:
            logits = torch.from_numpy(-d)
        else:
            logits = predicted(self.learner, self.x[None], torch.from_numpy(self.y)[None], x[None], way)[0].double()
        p = torch.softmax(logits / self.temperature, -1).numpy()
        return Answer(self.names, p, unusualness(d) <= conformal_quantile(self.unusual, coverage), coverage)

    def extended(self, raw: Mapping[str, Any], files: Mapping[str, Sequence[str]] | None = None) -> Classifier:
        """Return a classifier with more examples, of these classes or of new ones.

        Args:
            raw: for each class its new examples.
            files: for each class a name for each new example.

        Raises:
            DataError: see ``inputs``.
        """
        names = [*self.names, *(name for name in raw if name not in self.names)]
        x, y, labels = [self.x], [self.y], list(self.files)
        for name, examples in raw.items():
            more = self.inputs(examples)
            x.append(more)
            y.append(np.full(len(more), names.index(name)))
            labels += files[name] if files else [f"{name}/{i}" for i in range(len(more))]
        return fitted(torch.cat(x), torch.from_numpy(np.concatenate(y)), names, self.learner, self.preparation, labels)

    def without(self, names: Sequence[str]) -> Classifier:
        """Return a classifier without some classes.

        Raises:
            OptionError: there is no such class, or fewer than two classes are left.
        """
        for name in names:
            if name not in self.names:
                expected = ", ".join(self.names)
                raise OptionError(f"classifier: got the class {name!r} to remove, expected one of {expected}")
        kept = [name for name in self.names if name not in names]
        rows = [i for i, label in enumerate(self.y) if self.names[label] in kept]
        y = torch.tensor([kept.index(self.names[self.y[i]]) for i in rows])
        files = [self.files[i] for i in rows]
        return fitted(self.x[rows], y, kept, self.learner, self.preparation, files)


def fitted(
    x: Tensor,
    y: Tensor,
    names: Sequence[str],
    learner: Mapping[str, Any] | None = None,
    preparation: Preparation | None = None,
    files: Sequence[str] = (),
) -> Classifier:
    """Make a classifier of labelled examples.

    Each example whose class has another one is left out in turn and predicted from the others. These predictions give
    the estimate of the accuracy, the temperature, and what is unusual.

    Args:
        x: inputs [n, *input].
        y: classes 0 to N - 1 [n].
        names: names of the N classes.
        learner: ``{"name": ..., **options}``, or None for the nearest mean of a class at unit length.
        preparation: how files become inputs.
        files: a name for each example.

    Raises:
        DataError: there are fewer than two classes, or a class has no example.
    """
    x, way = x.half().float(), len(names)  # as they are stored
    counts = torch.bincount(y, minlength=way)
    if way < 2 or int(counts.min()) == 0 or len(counts) > way:
        raise DataError(
            f"classifier: got {way} classes with {counts.tolist()} examples, expected at least two classes with at "
            "least one example each"
        )
    out = torch.nonzero(counts[y] > 1)[:, 0]
    left_out, estimate = np.full(len(y), -1, np.int64), None
    d = left_out_distances(x, y.numpy(), out.numpy(), way)
    own, m = y[out].numpy(), np.arange(len(out))
    if len(out):
        logits = -d if learner is None else _left_out_logits(learner, x, y, out, way)
        left_out[out.numpy()] = logits.argmax(1)
        t = temperature(logits, own)
        estimate = Estimate(int((logits.argmax(1) == own).sum()), len(out))
    else:  # no example tells how far logits can be trusted, so they are divided by their own spread
        t = float(distances(x, y.numpy(), x, way).std()) or 1.0
    unusual = unusualness(d)[m, own]
    files = tuple(files) or tuple(f"example {i}" for i in range(len(y)))
    learner = None if learner is None else dict(learner)
    return Classifier(tuple(names), x, y.numpy(), files, preparation, learner, t, unusual, estimate, left_out)


def predicted(learner: Mapping[str, Any], x: Tensor, y: Tensor, query: Tensor, way: int) -> Tensor:
    """Return the logits [B, q, N] of queries [B, q, *input] from supports ``x`` [B, n, *input] with labels [B, n].

    Raises:
        PluginError, OptionError: the learner can't be built.
        MisfitError: it does not fit such inputs.
    """
    spec = TaskSpec(kind="classification", input_shape=tuple(x.shape[2:]), way=way, shot=None, query=None)
    options = {name: value for name, value in learner.items() if name != "name"}
    built = registry.learner(str(learner["name"]), spec, **options)
    with torch.inference_mode():
        keys = torch.zeros(len(x), dtype=torch.int64)  # each is adapted to as if it were alone
        logits: Tensor = built.adapt(Support(x=x, y=y, key=keys, way=way))(query)
    return logits


def distances(x: Tensor, y: NDArray[np.int64], query: Tensor, way: int) -> NDArray[np.float64]:
    """Return the squared distances of queries to the means of the classes, all inputs scaled to unit length [q, N].

    Args:
        x: inputs of the labelled examples [n, *input].
        y: their classes [n].
        query: new inputs [q, *input].
        way: N.
    """
    d: NDArray[np.float64] = torch.cdist(_unit(query), class_centres(x, y, way)).square().numpy()
    return d


def unusualness(d: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how unusual examples are for each class [q, N], from their squared distances to the classes [q, N].

    It is 2 d_c - min over other classes k of d_k: large if a class is far away, and if another one is nearer.
    """
    nearest_two = np.sort(d, axis=1)[:, :2]
    others = np.where(d == nearest_two[:, :1], nearest_two[:, 1:], nearest_two[:, :1])
    return 2 * d - others


def left_out_distances(x: Tensor, y: NDArray[np.int64], out: NDArray[np.int64], way: int) -> NDArray[np.float64]:
    """Return ``distances`` of labelled examples, each left out of the mean of its own class in turn [m, N].

    The distance to the mean of k - 1 examples instead of k is corrected. If the noise of examples is independent, the
    squared distance of a new example to the mean of k is on average (1 + 1 / k) times the variance, and that to the
    mean of k - 1 is (1 + 1 / (k - 1)) times it; their ratio is (k^2 - 1) / k^2.

    Args:
        x: inputs of the labelled examples [n, *input].
        y: their classes [n].
        out: the examples to leave out, whose classes have others [m].
        way: N.
    """
    means, counts = _means(x, y, way)
    z, k = _unit(x)[out], counts[y[out]][:, None]
    d = torch.cdist(z, means).square()
    others = (means[y[out]] * k - z) / (k - 1)
    d[torch.arange(len(out)), torch.from_numpy(y[out])] = (z - others).square().sum(1) * ((k**2 - 1) / k**2)[:, 0]
    return np.asarray(d.numpy())


def _left_out_logits(learner: Mapping[str, Any], x: Tensor, y: Tensor, out: Tensor, way: int) -> NDArray[np.float64]:
    """Return the logits [m, N] of a learner for examples that are left out in turn."""
    parts = [predicted(learner, *part, way)[:, 0] for part in _each_left_out(x, y, out)]
    return np.asarray(torch.cat(parts).double().numpy())


def class_centres(x: Tensor, y: NDArray[np.int64], way: int) -> Tensor:
    """Return the means of the unit vectors of each class [N, D], in float64.

    Args:
        x: inputs of the labelled examples [n, *input].
        y: their classes [n].
        way: N.

    Example:
        >>> class_centres(torch.tensor([[2.0, 0.0], [0.0, 5.0]]), np.array([0, 0]), 1).tolist()
        [[0.5, 0.5]]
    """
    return _means(x, y, way)[0]


def _means(x: Tensor, y: NDArray[np.int64], way: int) -> tuple[Tensor, Tensor]:
    """Return the means of the unit vectors of each class [N, D] and the numbers of examples [N]."""
    one_hot = torch.nn.functional.one_hot(torch.from_numpy(y), way).double()
    counts = one_hot.sum(0)
    return one_hot.T @ _unit(x) / counts[:, None], counts


def _unit(x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x.flatten(1).double(), dim=1)


def _each_left_out(x: Tensor, y: Tensor, out: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield supports [B, n - 1, *input], their labels [B, n - 1], and the examples that they lack [B, 1, *input]."""
    for part in out.split(max(1, AT_ONCE // max(1, x.numel()))):
        others = torch.stack([torch.cat([torch.arange(int(i)), torch.arange(int(i) + 1, len(x))]) for i in part])
        yield x[others], y[others], x[part][:, None]
