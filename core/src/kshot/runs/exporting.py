"""Export a classifier as an ONNX graph: the encoder, the head and the calibrated temperature in one file.

The graph begins with prepared inputs, because reading files is not a matter of tensors. How they are prepared is
written into the file. Needs the extra ``kshot[onnx]``: torch writes ONNX by onnxscript, and the result is compared with
the classifier by onnxruntime before anything is written.

Letters: n examples, N classes, D numbers of an embedding.
"""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from attrs import evolve, frozen
from torch import Tensor, nn

from kshot import registry
from kshot._engine.run_folder import write_atomically
from kshot.episode import Predictor, Support
from kshot.errors import OptionError, PluginError, RunError
from kshot.preparing import Preparation
from kshot.runs.classifier import Classifier, class_centres, distances, unusualness
from kshot.runs.confidence import conformal_quantile
from kshot.runs.embedded import encoder_of
from kshot.spec import TaskSpec

SUFFIX = ".onnx"

OPSET = 18
"""Version of the operators of ONNX; the first that resizes pictures with antialiasing."""

TOLERANCE = 1e-3
"""The greatest difference between the outputs of the graph and those of the classifier. Both compute in float32, in
another order, and a small temperature multiplies the difference."""

COVERAGES = (0.8, 0.9, 0.95)
"""Probabilities for which the file has the bound below which a class is plausible."""

TRIED = 4
"""Number of inputs on which the graph is compared with the classifier."""


@frozen
class Exported:
    """Store what an export wrote.

    Attributes:
        path: the file.
        inputs: shape of one input.
        classes: names of the N classes.
        difference: the greatest difference between the outputs of the graph and those of the classifier.
    """

    path: Path
    inputs: tuple[int, ...]
    classes: tuple[str, ...]
    difference: float


class Graph(nn.Module):
    """Compute the probabilities of a classifier from prepared inputs, in float32.

    Args:
        classifier: the classifier.
        encoder: the encoder of its inputs, or None if they are not embedded.
        predict: the adapted learner, or None for the nearest mean of a class at unit length.
        learner: the learner, whose weights ``predict`` may use.
    """

    means: Tensor

    def __init__(
        self, classifier: Classifier, encoder: nn.Module | None, predict: Predictor | None, learner: nn.Module | None
    ) -> None:
        super().__init__()
        self.encoder, self.learner = encoder, learner
        self.predict, self.temperature = predict, classifier.temperature
        self.register_buffer("means", class_centres(classifier.x, classifier.y, len(classifier.names)).float())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the probabilities [n, N] and ``unusualness`` [n, N] of inputs [n, *input]."""
        z = x if self.encoder is None else self.encoder(x).float()
        unit = F.normalize(z.flatten(1), dim=1)
        # ||z - m||^2 = ||z||^2 + ||m||^2 - 2 z m: one product of matrices, for vectors of which none is longer than 1.
        d = unit.square().sum(1, keepdim=True) + self.means.square().sum(1) - 2 * unit @ self.means.T
        logits = -d if self.predict is None else self.predict(z[None])[0].float()
        nearest = d.topk(2, dim=1, largest=False).values
        others = torch.where(d == nearest[:, :1], nearest[:, 1:], nearest[:, :1])
        return torch.softmax(logits / self.temperature, -1), 2 * d - others


def export(classifier: Classifier, path: str | Path) -> Exported:
    """Write a classifier as an ONNX file, completely or not at all.

    The graph has the input ``inputs`` [n, *input], examples as they are prepared before they are embedded, and the
    outputs ``probabilities`` [n, N] and ``unusual`` [n, N]. A class is plausible if ``unusual`` is at most the bound of
    a coverage. The metadata of the file have the names of the classes, the bounds, and how inputs are prepared, see
    ``metadata``. The outputs for some inputs are compared with those of the classifier by onnxruntime first.

    Args:
        classifier: a classifier, such as ``kshot.runs.fitting.fit`` makes.
        path: the file to write, whose name ends in ``.onnx``.

    Raises:
        OptionError: the name does not end in ``.onnx``.
        PluginError: a package of ``kshot[onnx]`` is missing; the encoder or the learner can't be exported; or the
            outputs of the graph differ by more than ``TOLERANCE``.
        RunError: the file can't be written.

    Example:
        >>> from kshot.runs.classifier import fitted
        >>> classifier = fitted(torch.eye(4), torch.tensor([0, 0, 1, 1]), ["ash", "birch"])
        >>> export(classifier, "mine.onnx").inputs  # doctest: +SKIP
        (4,)
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise OptionError(f"export: got the output {path}, expected a name that ends in {SUFFIX}")
    if not path.parent.is_dir():
        raise RunError(f"{path}: the folder {path.parent} does not exist; create it or choose another")
    _check_packages()
    encoder, spec = encoder_of(classifier.preparation)
    predict, learner = _adapted(classifier)
    graph = Graph(classifier, encoder, predict, learner).eval()
    x = _inputs(classifier, spec)
    content = _written(graph, x, metadata(classifier), _named(classifier))
    difference = _difference(content, classifier, encoder, x)
    if not difference <= TOLERANCE:
        raise PluginError(
            f"export: got a graph of {_named(classifier)} whose outputs differ by {difference:.2g} from those of the "
            f"classifier, expected at most {TOLERANCE:g}; nothing was written, use the classifier in Python"
        )
    write_atomically(path, lambda file: file.write(content))
    return Exported(path, tuple(x.shape[1:]), classifier.names, difference)


def metadata(classifier: Classifier) -> dict[str, str]:
    """Return what the ONNX file of a classifier says about it, each value as JSON.

    - ``kshot.classes``: the names of the N classes, in the order of the outputs.
    - ``kshot.inputs``: the shape and the range of inputs, and the function and the options that prepare them.
    - ``kshot.plausible``: for some coverages the bound of ``unusual``; null if all classes are plausible.
    - ``kshot.encoder``, ``kshot.learner``: names and options; null if there is none.
    - ``kshot.temperature``, ``kshot.estimate``: the calibrated temperature; right predictions of left-out examples.

    Example:
        >>> from kshot.runs.classifier import fitted
        >>> metadata(fitted(torch.eye(4), torch.tensor([0, 0, 1, 1]), ["ash", "birch"]))["kshot.classes"]
        '["ash", "birch"]'
    """
    preparation, encoder = classifier.preparation, None
    _, spec = encoder_of(preparation, build=False)
    if preparation is not None and spec is not None:
        options = preparation.options
        encoder = {"name": options["encoder"], "options": json.loads(options["options"]), "digest": options["digest"]}
        preparation = options["below"]
    bounds = {str(c): conformal_quantile(classifier.unusual, c) for c in COVERAGES}
    estimate = classifier.estimate
    values = {
        "classes": list(classifier.names),
        "inputs": {
            "shape": ["n", *(classifier.x.shape[1:] if spec is None else spec.input_shape)],
            "range": None if spec is None or spec.input_range is None else list(spec.input_range),
            "preparation": None if preparation is None else preparation.to_dict(),
        },
        "plausible": {c: bound if math.isfinite(bound) else None for c, bound in bounds.items()},
        "encoder": encoder,
        "learner": None if classifier.learner is None else dict(classifier.learner),
        "temperature": classifier.temperature,
        "estimate": None if estimate is None else {"correct": estimate.correct, "of": estimate.total},
    }
    return {f"kshot.{name}": json.dumps(value, default=_plain) for name, value in values.items()}


def inputs_of(classifier: Classifier) -> Preparation | None:
    """Return how files become inputs of the exported graph; None if the classifier is one of numbers."""
    _, spec = encoder_of(classifier.preparation, build=False)
    if classifier.preparation is None or spec is None:
        return classifier.preparation
    below: Preparation = classifier.preparation.options["below"]
    return below


def _check_packages() -> None:
    """Raise PluginError if a package of the extra is missing."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise PluginError(
            f"export: got no package {error.name!r}, expected those that write and run ONNX files: "
            "pip install 'kshot[onnx]'"
        ) from error
    onnxruntime.set_default_logger_severity(3)  # of warnings, such as of processors that it can't name


def _adapted(classifier: Classifier) -> tuple[Predictor | None, nn.Module | None]:
    """Return the learner of a classifier, adapted to its examples, or None for the usual head.

    Raises:
        PluginError: its predictions depend on other queries.
    """
    if classifier.learner is None:
        return None, None
    shape, way = tuple(classifier.x.shape[1:]), len(classifier.names)
    spec = TaskSpec(kind="classification", input_shape=shape, way=way, shot=None, query=None)
    options = {name: value for name, value in classifier.learner.items() if name != "name"}
    learner = registry.learner(str(classifier.learner["name"]), spec, **options)
    if learner.needs.queries != "independent":
        raise PluginError(
            f"export: got the learner {classifier.learner['name']!r}, whose prediction of an example depends on the "
            "examples beside it, expected one that predicts each alone; fit with another learner, such as "
            "linear-probe, or without --learner"
        )
    support = Support(
        x=classifier.x[None], y=torch.from_numpy(classifier.y)[None], key=torch.zeros(1, dtype=torch.int64), way=way
    )
    with torch.no_grad():
        return learner.adapt(support), learner  # type: ignore[return-value]


def _inputs(classifier: Classifier, spec: TaskSpec | None) -> Tensor:
    """Return inputs [n, *input] to compare on: labelled examples, or random ones if these are embedded."""
    if spec is None:
        places = np.linspace(0, len(classifier.x) - 1, TRIED).astype(np.int64)
        return classifier.x[places].contiguous()
    low, high = spec.input_range or (-1.0, 1.0)
    x = torch.rand(TRIED, *spec.input_shape, generator=torch.Generator().manual_seed(0))
    weights = torch.linspace(0.2, 1, TRIED).view(-1, *[1] * len(spec.input_shape))  # from faint to full contrast
    return low + (high - low) * (0.5 + weights * (x - 0.5))


def _written(graph: nn.Module, x: Tensor, described: dict[str, str], named: str) -> bytes:
    """Return the bytes of an ONNX file.

    Raises:
        PluginError: torch can't export the graph.
    """
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what torch.export decides by itself
            # Exported here, because torch.onnx.export would take a graph of a fixed number of examples instead.
            exported = torch.export.export(graph, (x,), dynamic_shapes=({0: torch.export.Dim("n")},), strict=False)
            program = torch.onnx.export(
                exported,
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=["inputs"],
                output_names=["probabilities", "unusual"],
            )
            assert program is not None, "it is None for the older exporter only"
            program.model.metadata_props.update(described)
            content: bytes = program.model_proto.SerializeToString()
    except Exception as error:  # of torch, onnxscript, or the module
        cause = error.__cause__ or error
        reason = f"{type(cause).__name__}: {' '.join(str(cause).split())[:160]}"
        raise PluginError(
            f"export: got {named}, which torch can't export ({reason}), expected one that computes with tensors only; "
            "fit with another learner or encoder, or use the classifier in Python"
        ) from error
    return content


def _difference(content: bytes, classifier: Classifier, encoder: nn.Module | None, x: Tensor) -> float:
    """Return the greatest difference between the outputs of a graph and those of the classifier, for several and one.

    Raises:
        PluginError: onnxruntime can't run the graph.
    """
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        parts = [session.run(None, {"inputs": part.numpy()}) for part in (x[:-1], x[-1:])]
        outputs = [np.concatenate(part) for part in zip(*parts, strict=True)]
    except Exception as error:  # the errors of onnxruntime have no class in common
        raise PluginError(
            f"export: got a graph of {_named(classifier)} that onnxruntime can't run "
            f"({str(error).partition(chr(10))[0]}), expected one that it can; nothing was written"
        ) from error
    with torch.no_grad():
        z = x if encoder is None else encoder(x)
    plain = evolve(classifier, preparation=None)
    expected = plain.predict(z).probabilities, unusualness(distances(plain.x, plain.y, z, len(plain.names)))
    return float(max(np.abs(got - right).max() for got, right in zip(outputs, expected, strict=True)))


def _named(classifier: Classifier) -> str:
    """Return the components of a classifier, for messages."""
    learner = "the nearest mean" if classifier.learner is None else f"the learner {classifier.learner['name']!r}"
    _, spec = encoder_of(classifier.preparation, build=False)
    if classifier.preparation is None or spec is None:
        return learner
    return f"{learner} with the encoder {classifier.preparation.options['encoder']!r}"


def _plain(value: Any) -> Any:
    """Return an option that is not plain, such as the tensor of a projection, as text."""
    if isinstance(value, Tensor):
        return f"{value.dtype} {list(value.shape)}"
    return str(value)
