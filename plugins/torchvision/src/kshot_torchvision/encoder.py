"""Classifiers of torchvision without their last layers.

Letters: n examples, D numbers of an embedding; a picture is [C, H, W].
"""

from __future__ import annotations

import copy
import difflib
import pickle
from pathlib import Path
from typing import Any

import torch
import torchvision.models
from torch import Tensor, nn

from kshot import TaskSpec
from kshot.errors import DataError, OptionError
from kshot.nn import PictureEncoder, Tune


def torchvision_encoder(
    spec: TaskSpec, *, model: str, weights: Path | str | None = None, tune: Tune = "none"
) -> PictureEncoder:
    """Build a classifier of torchvision without its last layer, with trained weights.

    Pictures are resized to the size with which the weights were trained, and normalised by their mean and deviation.

    Args:
        spec: spec of the tasks, whose inputs are pictures [1, H, W] or [3, H, W] within [0, 1].
        model: name of the model, such as ``resnet18``; see ``torchvision.models.list_models()``.
        weights: a file with the weights of the model, as torchvision publishes them. By default the best weights are
            downloaded once, and kept in the cache of torch.
        tune: which weights are trained: ``none``, ``head`` (the last layer with weights that is left) or ``all``.

    Raises:
        OptionError: torchvision has no such model, or ``tune`` is another value.
        DataError: the inputs are not pictures, there is no network connection, or the weights are of another model.

    Example:
        >>> import tempfile
        >>> spec = TaskSpec(kind="classification", input_shape=(3, 64, 64), way=2, shot=1, query=1)
        >>> with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        ...     path = Path(folder, "weights.pth")
        ...     torch.save(torchvision.models.get_model("mnasnet0_5").state_dict(), path)
        ...     torchvision_encoder(spec, model="mnasnet0_5", weights=path)(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2, 1280])
    """
    published = _published(model)
    net: nn.Module = torchvision.models.get_model(model, weights=None)
    classifier = _classifier(net, model)
    state = _downloaded(model, published) if weights is None else _read(model, Path(weights))
    # The last layer is not used, so a file may have one for any number of classes.
    kept = copy.copy(state)  # with the versions of its layers, which a new dictionary does not have
    for name in [name for name in kept if name.startswith(f"{classifier}.")]:
        del kept[name]
    try:
        lacking, unknown = net.load_state_dict(kept, strict=False)
    except (RuntimeError, ValueError) as error:  # of other shapes or versions
        raise _other(model, weights, str(error).splitlines()[-1].strip()) from error
    lacking = [name for name in lacking if not name.startswith(f"{classifier}.")]
    if lacking or unknown:
        raise _other(model, weights, f"without {lacking[0]}" if lacking else f"with {unknown[0]}")
    net.set_submodule(classifier, nn.Identity())
    made = published.transforms()
    size = made.crop_size[0]
    return PictureEncoder(net, spec.input_shape, size=(size, size), mean=made.mean, std=made.std, tune=tune)


def _task_options(model: str = "", **_: Any) -> dict[str, Any]:
    """Return the options of tasks of pictures that make them as the model takes them."""
    return {"size": _published(str(model)).transforms().crop_size[0], "mode": "RGB", "fit": "crop"}


torchvision_encoder.task_options = _task_options  # type: ignore[attr-defined]


def _published(model: str) -> Any:
    """Return torchvision's best weights of a model.

    Raises:
        OptionError: there is no such model.
    """
    known = torchvision.models.list_models(module=torchvision.models)
    if model not in known:
        near = difflib.get_close_matches(model, known, 3)
        hint = f"; did you mean {' or '.join(near)}?" if near else "; see torchvision.models.list_models()"
        raise OptionError(f"torchvision: got the model {model!r}, expected a classifier of torchvision{hint}")
    return torchvision.models.get_model_weights(model).DEFAULT


def _classifier(net: nn.Module, model: str) -> str:
    """Return the name of a network's last layer.

    Raises:
        OptionError: it is not a linear one.
    """
    names: list[str] = [name for name, module in net.named_modules() if isinstance(module, nn.Linear)]
    if not names:
        raise OptionError(
            f"torchvision: got {model!r}, whose last layer is not linear, expected another model, such as resnet18"
        )
    return names[-1]


def _downloaded(model: str, published: Any) -> dict[str, Tensor]:
    try:
        state: dict[str, Tensor] = published.get_state_dict(
            progress=False, check_hash=True, weights_only=True, map_location="cpu"
        )
    except (OSError, RuntimeError, ValueError, pickle.UnpicklingError) as error:  # OSError: no connection
        raise DataError(
            f"torchvision: got no weights of {model!r} ({type(error).__name__}: {error}), expected to download them "
            f"from {published.url}; without a network, download this file on another machine, put it here, and name "
            "it: --learner.encoder.weights=FILE"
        ) from error
    return state


def _read(model: str, path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(
            f"torchvision: weights: {path} can't be read ({type(error).__name__}: {reason}), expected a file with the "
            f"weights of {model!r}"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise _other(model, path, "that is no table of tensors")
    return state


def _other(model: str, weights: Path | str | None, found: str) -> DataError:
    return DataError(f"torchvision: weights: got {weights} {found}, expected a file with the weights of {model!r}")
