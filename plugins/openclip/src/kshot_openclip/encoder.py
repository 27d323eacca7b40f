"""The picture networks of CLIP models: Radford et al., "Learning transferable visual models from natural language
supervision", 2021 (2103.00020), as OpenCLIP has them.

Letters: n examples, D numbers of an embedding; a picture is [C, H, W].
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor, nn

from kshot import TaskSpec
from kshot.errors import DataError, OptionError
from kshot.nn import PictureEncoder, Tune

CONFIG = "open_clip_config.json"
"""The file of a folder that describes its model."""


class Pictures(nn.Module):
    """Embed pictures by the visual part of a CLIP model: [n, 3, H, W] -> [n, D].

    Args:
        visual: the visual part.
    """

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, x: Tensor) -> Tensor:
        """Return the embeddings in the space that pictures and texts share; some models return tokens, too."""
        z = self.visual(x)
        embeddings: Tensor = z[0] if isinstance(z, tuple) else z
        return embeddings


def openclip(
    spec: TaskSpec,
    *,
    model: str,
    pretrained: str | None = None,
    weights: Path | str | None = None,
    tune: Tune = "none",
) -> PictureEncoder:
    """Build the picture network of a CLIP model, which was trained on pictures and their captions.

    Pictures are resized to the size with which the model was trained, and normalised by its own mean and deviation.
    Tasks with pictures of this size are best; ``imagefolder`` makes them by itself if a learner uses this encoder.

    Args:
        spec: spec of the tasks, whose inputs are pictures [1, H, W] or [3, H, W] within [0, 1].
        model: name of the model, such as ``ViT-B-32``, see ``open_clip.list_models()``.
        pretrained: name of its weights, such as ``laion2b_s34b_b79k``, which are downloaded once. See
            ``open_clip.list_pretrained()``.
        weights: instead of ``pretrained``, a file of weights, or a folder with ``open_clip_config.json`` and
            ``open_clip_model.safetensors``, as the hub has them; the folder's configuration replaces that of the model.
        tune: which weights are trained: ``none``, ``head`` (the last block of a transformer, or the last part) or
            ``all``.

    Raises:
        OptionError: OpenCLIP has no such model or weights, or neither weights nor a file are named.
        DataError: the inputs are not pictures, there is no network connection, or the weights are of another model.

    Example:
        >>> spec = TaskSpec(kind="classification", input_shape=(3, 224, 224), way=2, shot=1, query=1)
        >>> openclip(spec, model="RN50", pretrained="nothing")
        Traceback (most recent call last):
        kshot.errors.OptionError: openclip: got the weights 'nothing' of RN50, expected one of openai, yfcc15m, cc12m; \
or name a file: weights=FILE
    """
    net = clip_model(model, pretrained, weights).visual
    blocks = getattr(getattr(net, "transformer", None), "resblocks", None)
    parts = [child for child in net.children() if any(True for _ in child.parameters())]
    size, data = net.image_size, net.preprocess_cfg
    return PictureEncoder(
        Pictures(net),
        spec.input_shape,
        size=(size, size) if isinstance(size, int) else tuple(size),
        mean=data["mean"],
        std=data["std"],
        tune=tune,
        head=blocks[-1] if blocks else parts[-1],
    )


def _task_options(model: str = "", weights: Path | str | None = None, **_: Any) -> dict[str, Any]:
    """Return the options of tasks of pictures that make them as the model takes them."""
    if weights is not None and Path(weights).is_dir():
        config = _described(Path(weights))["model_cfg"]
    else:
        _check_name(str(model))
        config = open_clip.get_model_config(str(model))
    return {"size": config["vision_cfg"].get("image_size", 224), "mode": "RGB", "fit": "crop"}


openclip.task_options = _task_options  # type: ignore[attr-defined]


def clip_model(model: str, pretrained: str | None, weights: Path | str | None) -> Any:
    """Return a CLIP model with its weights, in evaluation mode.

    Raises:
        OptionError, DataError: see ``openclip``.
    """
    path = None if weights is None else Path(weights)
    folder = path is not None and path.is_dir()
    if path is not None and not path.exists():
        raise DataError(
            f"openclip: weights: got {path}, which does not exist, expected a file of weights, or a folder that has "
            f"{CONFIG} and open_clip_model.safetensors"
        )
    if folder:
        _described(path)  # type: ignore[arg-type]
    else:
        _check_name(model)
    tags = open_clip.list_pretrained_tags_by_model(model)
    if path is None and pretrained not in tags:
        got = "no name of weights" if pretrained is None else f"the weights {pretrained!r} of {model}"
        raise OptionError(
            f"openclip: got {got}, expected one of {', '.join(tags) or 'none'}; or name a file: weights=FILE"
        )
    try:
        with torch.random.fork_rng(devices=[]):  # weights are drawn before they are loaded
            net = open_clip.create_model(
                f"local-dir:{path}" if folder else model,
                pretrained=None if folder else str(pretrained if path is None else path),
                require_pretrained=True,
                pretrained_text=False,
                weights_only=True,
            )
    except Exception as error:  # of open_clip, the hub, the network or the file
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        if path is not None:
            raise DataError(
                f"openclip: {path} can't be read as weights of {model!r} ({reason}), expected all of its weights, as "
                "tensors in a file .safetensors, .bin or .pt"
            ) from error
        raise DataError(
            f"openclip: got no weights {pretrained!r} of {model!r} ({reason}), expected to download them from "
            f"{_source(model, str(pretrained))}; without a network, download the file there on another machine, put "
            "it into a folder here, and name it: --learner.encoder.weights=FILE"
        ) from error
    return net.eval()


def _source(model: str, pretrained: str) -> str:
    """Return the address of weights."""
    config = open_clip.get_pretrained_cfg(model, pretrained)
    hub = str(config.get("hf_hub", "")).rstrip("/")
    return f"https://huggingface.co/{hub}" if hub else str(config.get("url", "its page"))


def _check_name(model: str) -> None:
    """Refuse a model that OpenCLIP does not have, with the names that are nearest.

    Raises:
        OptionError: there is no such model.
    """
    names = open_clip.list_models()
    if model not in names:
        near = difflib.get_close_matches(model, names, 3)
        hint = f"; did you mean {' or '.join(near)}?" if near else "; see open_clip.list_models()"
        raise OptionError(f"openclip: got the model {model!r}, expected one of OpenCLIP {open_clip.__version__}{hint}")


def _described(folder: Path) -> dict[str, Any]:
    """Return the configuration in a folder.

    Raises:
        DataError: there is none, or it is damaged.
    """
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        config["model_cfg"]["vision_cfg"].get("image_size")
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise DataError(
            f"openclip: {folder / CONFIG} can't be used ({type(error).__name__}: {error}), expected a folder with "
            f"{CONFIG} and open_clip_model.safetensors, as the hub has them"
        ) from error
    return config
