"""Models of timm, PyTorch image models, without their classifiers.

Letters: n examples, D numbers of an embedding; a picture is [C, H, W].
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import timm.data
import torch
from torch import nn

from kshot import TaskSpec
from kshot.errors import DataError, OptionError
from kshot.nn import PictureEncoder, Tune

FILES = ("model.safetensors", "pytorch_model.bin", "model.pth")
"""Names that the file of weights may have in a folder; the first that exists is used."""


def timm_encoder(
    spec: TaskSpec, *, model: str, weights: Path | str | None = None, tune: Tune = "none"
) -> PictureEncoder:
    """Build a model of timm without its classifier, with trained weights.

    Pictures are resized to the size with which the model was trained, and normalised by its own mean and deviation.
    Tasks with pictures of this size are best; ``imagefolder`` makes them by itself if a learner uses this encoder.

    Args:
        spec: spec of the tasks, whose inputs are pictures [1, H, W] or [3, H, W] within [0, 1].
        model: name of the model, with or without the name of its weights: ``resnet18``, ``resnet18.a1_in1k``. See
            ``timm.list_models(pretrained=True)``.
        weights: a file of weights, or a folder with ``model.safetensors`` and ``config.json``, as the hub has them. By
            default they are downloaded from the Hugging Face hub once, and kept in its cache.
        tune: which weights are trained: ``none``, ``head`` (the last of the model's parts with weights, such as
            ``layer4`` of a ResNet) or ``all``.

    Raises:
        OptionError: timm has no such model, or ``tune`` is another value.
        DataError: the inputs are not pictures, there is no network connection, or the weights are of another model.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> spec = TaskSpec(kind="classification", input_shape=(3, 64, 64), way=2, shot=1, query=1)
        >>> with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        ...     path = Path(folder, "resnet10t.pth")
        ...     torch.save(timm.create_model("resnet10t").state_dict(), path)
        ...     timm_encoder(spec, model="resnet10t", weights=path)(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2, 512])
    """
    _check_name(model)
    net = _from_hub(model) if weights is None else _from_file(model, Path(weights))
    data = timm.data.resolve_model_data_config(net)
    parts = [child for child in net.children() if any(True for _ in child.parameters())]
    return PictureEncoder(
        net,
        spec.input_shape,
        size=tuple(data["input_size"][1:]),
        mean=data["mean"],
        std=data["std"],
        tune=tune,
        head=parts[-1] if parts else None,
    )


def _task_options(model: str = "", weights: Path | str | None = None, **_: Any) -> dict[str, Any]:
    """Return the options of tasks of pictures that make them as the model takes them."""
    _check_name(str(model))
    config = timm.get_pretrained_cfg(str(model))
    described = {} if weights is None else _described(_file(Path(weights)).parent)
    size = described.get("input_size") or (config.input_size if config is not None else (3, 224, 224))
    height, width = size[-2:]
    return {"size": height if height == width else (height, width), "mode": "RGB", "fit": "crop"}


timm_encoder.task_options = _task_options  # type: ignore[attr-defined]


def _check_name(model: str) -> None:
    """Refuse a model that timm does not have, with the names that are nearest.

    Raises:
        OptionError: there is no such model, or it has no weights of this name.
    """
    architecture, _, tag = model.partition(".")
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), 3)
        hint = f"; did you mean {' or '.join(near)}?" if near else "; see timm.list_models()"
        raise OptionError(f"timm: got the model {model!r}, expected one of timm {timm.__version__}{hint}")
    tags = [name.partition(".")[2] for name in timm.list_models(f"{architecture}.*", pretrained=True)]
    if tag and tag not in tags:
        raise OptionError(
            f"timm: got the weights {tag!r} of {architecture}, expected one of {', '.join(tags) or 'none'}; leave "
            "the name of the weights out for the usual ones"
        )


def _from_hub(model: str) -> nn.Module:
    """Return a model with the weights of the hub.

    Raises:
        DataError: timm knows no weights of it, or they can't be downloaded.
    """
    config = timm.get_pretrained_cfg(model)
    if config is None or not config.has_weights:
        raise DataError(
            f"timm: got {model!r}, of which timm has no trained weights, expected a model of "
            "timm.list_models(pretrained=True); or name a file of weights: weights=FILE"
        )
    try:
        net: nn.Module = timm.create_model(model, pretrained=True, num_classes=0)
    except Exception as error:  # of timm, the hub, the network or the file
        where = f"https://huggingface.co/{config.hf_hub_id}" if config.hf_hub_id else config.url
        raise DataError(
            f"timm: got no weights of {model!r} ({type(error).__name__}: {str(error).partition(chr(10))[0]}), expected "
            f"to download them from {where}; without a network, download model.safetensors and config.json there on "
            "another machine, put both into a folder here, and name it: --learner.encoder.weights=FOLDER"
        ) from error
    return net


def _from_file(model: str, path: Path) -> nn.Module:
    """Return a model with the weights of a file or folder.

    Raises:
        DataError: the file can't be read, or lacks weights of the model.
    """
    file = _file(path)
    overlay = {**_described(file.parent if path.is_dir() else None), "file": str(file), "custom_load": False}

    def loaded(seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            net: nn.Module = timm.create_model(model, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay)
            return net

    try:
        # timm leaves out what a file does not have: then a weight differs between two random initialisations.
        net, other = loaded(0), loaded(1).state_dict()
    except Exception as error:
        raise DataError(
            f"timm: {file} can't be read as weights of {model!r} ({type(error).__name__}: "
            f"{str(error).partition(chr(10))[0]}), expected a file of tensors, .safetensors or .pth"
        ) from error
    lacking = [name for name, value in net.state_dict().items() if not torch.equal(value, other[name])]
    if lacking:
        raise DataError(
            f"timm: got {file} without {len(lacking)} weights of {model!r}, such as {lacking[0]}, expected all of "
            "them; name the model that the file is of"
        )
    return net


def _file(path: Path) -> Path:
    """Return the file of weights that a path names.

    Raises:
        DataError: there is none.
    """
    if path.is_file():
        return path
    for name in FILES:
        if (path / name).is_file():
            return path / name
    raise DataError(f"timm: weights: got {path}, expected a file of weights, or a folder that has {' or '.join(FILES)}")


def _described(folder: Path | None) -> Mapping[str, Any]:
    """Return how a folder's config.json says that pictures are made for the model: size, mean and std.

    Raises:
        DataError: it is damaged.
    """
    if folder is None or not (folder / "config.json").is_file():
        return {}
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("pretrained_cfg", {})
        found = {name: tuple(config[name]) for name in ("input_size", "mean", "std") if name in config}
        if [len(value) for value in found.values()] != [3] * len(found):
            raise ValueError(f"got {found}")
        numbers = {name: tuple(map(int if name == "input_size" else float, v)) for name, v in found.items()}
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise DataError(
            f"timm: {folder / 'config.json'} can't be used ({error}), expected a config.json of the hub, with "
            "input_size, mean and std of three numbers each"
        ) from error
    return numbers
