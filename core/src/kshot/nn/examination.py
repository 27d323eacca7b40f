"""What a net is examined for before an ``Encoder`` or a ``Network`` is built around it."""

from __future__ import annotations

from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from kshot.errors import DataError, MisfitError, OptionError
from kshot.nn.dependence import depends_on_batch
from kshot.nn.normalisation import Normalisation, batch_norms


@frozen
class Statistics:
    """Store whose statistics a net uses.

    Attributes:
        of_batch: whether examples that are computed together normalise each other in training or at evaluation.
        always: whether they do so at evaluation too, whatever the running statistics.

    Example:
        >>> Statistics(of_batch=True, always=False).of_batch
        True
    """

    of_batch: bool
    always: bool


def examine(
    owner: str, net: nn.Module, normalisation: Normalisation, input_shape: tuple[int, ...] | None
) -> Statistics:
    """Check that a net can follow the policy of normalisation, and return whose statistics it uses.

    Args:
        owner: the class that the net is for, for the error message.
        net: from examples [n, *input]. Lazily initialised layers are initialised by one input of zeros.
        normalisation: the policy.
        input_shape: shape of one input; without it the net can't be tried, and only batch norm layers are known.

    Raises:
        OptionError: the net normalises by the statistics of its inputs in a way that can't follow the policy, or over
            several processes, or a module of it was compiled by torch.jit.
        DataError: the net has lazily initialised layers that can't be initialised.

    Example:
        >>> examine("Encoder", nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), "inductive", (3,))
        Statistics(of_batch=True, always=False)
    """
    if any(isinstance(m, torch.jit.ScriptModule) for m in net.modules()):
        raise OptionError(
            f"{owner}: got a net with a module of torch.jit, whose layers can't be seen and which takes no other "
            "parameters, expected ordinary modules; give the module that it was made of"
        )
    _initialise(owner, net, input_shape)
    norms = batch_norms(net)
    if any(isinstance(m, nn.SyncBatchNorm) for m in norms):
        raise OptionError(
            f"{owner}: got a net with nn.SyncBatchNorm, which normalises by the statistics of all processes, expected "
            "each episode to be normalised by its own; use nn.BatchNorm2d"
        )
    # Batch norm without running statistics normalises by whatever it is given.
    always = any(m.running_mean is None or m.running_var is None for m in norms)
    unknown = False
    if input_shape is not None:
        always = always or depends_on_batch(net, input_shape, training=False)
        unknown = not always and depends_on_batch(net, input_shape, training=True)
    if always and normalisation != "transductive":
        raise OptionError(
            f"{owner}: got normalisation={normalisation!r} and a net whose output for one example depends on the "
            "others in evaluation mode too, expected a net that normalises by running statistics there; give its batch "
            "norm layers track_running_stats=True, or choose normalisation='transductive'"
        )
    if unknown and normalisation != "inductive":
        raise OptionError(
            f"{owner}: got normalisation={normalisation!r} and a net with a layer that normalises by its inputs in "
            "training and is no batch norm of torch, expected layers whose statistics can be chosen; derive the layer "
            "from nn.BatchNorm2d, or choose normalisation='inductive'"
        )
    return Statistics(of_batch=bool(norms) or always or unknown, always=always)


def expect_outputs(owner: str, outputs: Any, examples: int, *, axes: int = 1) -> Tensor:
    """Return the outputs of a net for ``examples`` inputs, after checking that they are one tensor with a row for each.

    Args:
        owner: the class that the net is for, for the error message.
        axes: the least number of axes, with that of the inputs.

    Raises:
        MisfitError: they are something else, such as the tuple or the mapping that some libraries' networks return.

    Example:
        >>> expect_outputs("Encoder", torch.zeros(5, 2), 5).shape
        torch.Size([5, 2])
    """
    if isinstance(outputs, Tensor) and outputs.ndim >= axes and outputs.shape[0] == examples:
        return outputs
    got = f"a tensor of shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
    raise MisfitError(
        f"{owner}: got a net that returns {got} for {examples} inputs, expected one tensor with a row for each input, "
        f"[{', '.join([str(examples), *['D'] * (axes - 1), '...'])}]; wrap it in a module that returns this tensor"
    )


def _initialise(owner: str, net: nn.Module, input_shape: tuple[int, ...] | None) -> None:
    """Initialise the lazy layers of a net, if it has any, by computing one input of zeros in evaluation mode."""
    lazy = [name for name, t in [*net.named_parameters(), *net.named_buffers()] if is_lazy(t)]
    if not lazy:
        return
    if input_shape is None:
        raise DataError(
            f"{owner}: got a net whose {lazy[0]} is lazily initialised, expected initialised parameters; give "
            "input_shape, or call the net once before"
        )
    modes = [(m, m.training) for m in net.modules()]
    try:
        with torch.no_grad():
            net.eval()(torch.zeros(1, *input_shape))
    except Exception as error:
        raise DataError(
            f"{owner}: got a net whose {lazy[0]} is lazily initialised and which can't take an input of shape "
            f"{input_shape} ({error}), expected one that can; initialise it by a call before"
        ) from error
    finally:
        for m, mode in modes:
            m.training = mode
