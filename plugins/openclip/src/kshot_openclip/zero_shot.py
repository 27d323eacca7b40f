"""Classify pictures by the names of classes, without any example: Radford et al. 2021 (2103.00020), section 3.1.

Letters: N classes, D numbers of an embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import attrs
import open_clip
import torch
import torch.nn.functional as F

from kshot.errors import OptionError
from kshot.runs.classifier import Classifier, fitted
from kshot.runs.fitting import preparation_for
from kshot_openclip.encoder import clip_model

TEMPLATE = "a photo of a {}."
"""The sentence that is made of the name of a class, as in the paper."""


def zero_shot(
    names: Sequence[str],
    *,
    model: str,
    pretrained: str | None = None,
    weights: Path | str | None = None,
    template: str = TEMPLATE,
) -> Classifier:
    """Make a classifier of pictures from the names of its classes, by a CLIP model.

    A picture is of the class whose sentence has the nearest embedding, both at unit length. The one example of each
    class is the embedding of its sentence, so pictures can be added by ``kshot.runs.fitting.extend``. Nothing says how
    sure the model is of pictures like the user's, so the temperature is the one with which the model was trained, and
    all classes are plausible.

    Args:
        names: names of the N classes.
        model, pretrained, weights: see ``openclip``.
        template: the sentence, with ``{}`` in the place of the name.

    Raises:
        OptionError: the template has no place for the name, or see ``openclip``.
        DataError: there are fewer than two names, or see ``openclip``.

    Example:
        >>> names = ["newt", "crane"]
        >>> classifier = zero_shot(names, model="ViT-B-32", pretrained="laion2b_s34b_b79k")  # doctest: +SKIP
        >>> classifier.predict(["new.jpg"]).labels  # doctest: +SKIP
        ['newt']
    """
    if "{}" not in template:
        raise OptionError(f"zero_shot: got the template {template!r}, expected a sentence with {{}} for the name")
    net = clip_model(model, pretrained, weights)
    folder = weights is not None and Path(weights).is_dir()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{weights}" if folder else model)
    with torch.no_grad():
        texts = F.normalize(net.encode_text(tokenizer([template.replace("{}", name) for name in names])), dim=1)
        scale = float(net.logit_scale.exp())
    options = {"pretrained": pretrained, "weights": None if weights is None else str(weights)}
    encoder = {
        "name": "openclip",
        "model": model,
        **{key: value for key, value in options.items() if value is not None},
    }
    classifier = fitted(texts.float(), torch.arange(len(names)), names, None, preparation_for(encoder), list(names))
    # Logits are minus squared distances, -(2 - 2 cos); the model was trained with the logits scale * cos.
    return attrs.evolve(classifier, temperature=2 / scale)
