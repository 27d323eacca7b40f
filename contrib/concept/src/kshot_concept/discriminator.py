"""The discriminator D, which classifies concepts, and what it keeps when its external set grows.

Letters: B meta-batch, n examples, C external classes, D length of a concept.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from kshot import TaskSpec
from kshot.errors import DataError
from kshot.nn import Encoder, NetworkChoice, find_head, infer_output_shape
from kshot.nn import network as build_network


class Discriminator(nn.Module):
    """Classify concepts among the external classes, which are known by name.

    The names are part of the state. So a discriminator of other classes can take over the rows of its last layer that
    belong to the classes that both know.

    Args:
        names: the external classes.
        shape: shape of one concept.
        network: ``mlp``, or another network of ``kshot.nn.network``, or a module from [n, *shape] to logits [n, C].
        hidden: units of the hidden layers of ``mlp``; () for one linear layer.

    Attributes:
        names: the names as a tensor of bytes, see ``encode``.

    Raises:
        DataError: the network does not return one logit for each external class.
        OptionError: the last layer of the network can't be found.

    Example:
        >>> discriminator = Discriminator(["cat", "dog", "owl"], (4,), "mlp", ())
        >>> discriminator(torch.zeros(2, 5, 4)).shape
        torch.Size([2, 5, 3])
    """

    names: Tensor

    def __init__(
        self, names: Sequence[str], shape: tuple[int, ...], network: NetworkChoice, hidden: tuple[int, ...]
    ) -> None:
        super().__init__()
        C = len(names)
        spec = TaskSpec(kind="classification", input_shape=shape, way=C, shot=1, query=1)
        self.net = Encoder(build_network(network, spec, hidden=hidden).net, input_shape=shape)
        logits = infer_output_shape(self.net, shape)
        if logits != (C,):
            raise DataError(
                f"concept: got outputs of shape {logits} from the discriminator, expected ({C},), a logit for each "
                "external class; change its last layer"
            )
        self.head = find_head(self.net.net, shape, who="concept")
        self.register_buffer("names", encode(names))

    def forward(self, z: Tensor) -> Tensor:
        """Return logits [B, n, C] of concepts ``z`` [B, n, *shape]."""
        logits: Tensor = self.net(z)
        return logits

    def inherited(self, theirs: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
        """Return the tensors of another run, in which the last layer of D has this discriminator's classes.

        The rows of the classes that both know are the other run's. All other rows are this discriminator's.

        Args:
            theirs: tensors of the other run by name.
            prefix: of the names of the discriminator's tensors, such as ``discriminator.``.

        Raises:
            DataError: the names of the other run's classes can't be read.
        """
        result = dict(theirs)
        if f"{prefix}names" not in result:
            return result  # it had no discriminator
        old = {name: row for row, name in enumerate(decode(result.pop(f"{prefix}names")))}
        new = decode(self.names)
        if lost := len(set(old) - set(new)):
            warnings.warn(
                f"concept: {lost} of the {len(old)} external classes of the run are not among the {len(new)} of these "
                "tasks; their rows of the discriminator are left out",
                stacklevel=2,
            )
        rows = [row for row, name in enumerate(new) if name in old]
        for name, own in self.net.net.state_dict().items():
            if name not in self.head:
                continue  # the layers below the last one do not depend on the classes
            their = result.pop(f"{prefix}net.net.{name}", None)
            if rows and their is not None and their.shape == (len(old), *own.shape[1:]) and len(own) == len(new):
                grown = own.detach().clone()
                grown[rows] = their[[old[new[row]] for row in rows]].to(grown)
                result[f"{prefix}net.net.{name}"] = grown
        result[f"{prefix}names"] = self.names
        return result


def encode(names: Sequence[str]) -> Tensor:
    """Return names as bytes of JSON, a tensor uint8 [length], since a checkpoint has tensors only.

    Example:
        >>> bytes(encode(["a", "b"]).tolist())
        b'["a","b"]'
    """
    text = json.dumps(list(names), ensure_ascii=False, separators=(",", ":"))
    return torch.frombuffer(bytearray(text, "utf-8"), dtype=torch.uint8).clone()


def decode(names: Tensor) -> list[str]:
    """Return the names that ``encode`` was given.

    Raises:
        DataError: the tensor has no such names.
    """
    try:
        found = json.loads(bytes(names.flatten().tolist()).decode("utf-8"))
    except (TypeError, ValueError, RecursionError):
        found = None
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found) or len(set(found)) < len(found):
        raise DataError(
            "concept: got names of external classes that can't be read, expected those that a discriminator stores; "
            "start from an undamaged run"
        )
    return found
