"""Check the state in a checkpoint completely, before the first value of it is loaded.

A checkpoint may be damaged, or made by somebody who wants an engine to be left half loaded: with the parameters of one
training and the optimizer of another. So names, shapes, types and ranges of everything are compared with the engine
first, and hooks load their states on trial.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kshot._engine.hook_calls import Hooks
from kshot._engine.identity import check_identity, check_parameters
from kshot._engine.processes import everywhere
from kshot._engine.states import shapes
from kshot._engine.stored import (
    Unfit,
    anything,
    fields,
    finite,
    is_finite,
    list_of,
    mapping_of,
    number,
    optional,
    plain,
    tensor,
    text,
    whole,
)
from kshot.errors import HookError, KshotError, RunError

ADVICE = "nothing was changed; use an earlier checkpoint of the run instead"


def parameter(value: Any, key: str) -> None:
    """Accept a tensor, or what a module adds to its ``state_dict`` by ``get_extra_state``."""
    if isinstance(value, Tensor) or not key.endswith("_extra_state"):
        tensor(value, key)


BEST = fields(
    {"score": number, "iteration": whole(-1), "worse": whole(), "parameters": optional(mapping_of(parameter))}
)
"""The best validation: the fields of ``kshot._engine.parameters.Best``."""

IDENTITY = fields({}, {"parameters": mapping_of(list_of(whole()))}, others=True)

STATE = fields(
    {
        "iteration": whole(),
        "learner": mapping_of(parameter),
        "best": BEST,
        "optimizer": optional(fields({"state": anything, "param_groups": list_of(mapping_of(anything), 1)})),
        "hooks": mapping_of(anything),
    },
    {  # the first checkpoints lack some of these
        "identity": IDENTITY,
        "versions": mapping_of(text),
        "backend": text,
        "iterations": optional(whole()),
        "low": whole(),
        "before_closing": optional(BEST),
    },
    others=True,
)
"""What a checkpoint contains, see ``Engine.state``."""


def check_state(path: str, state: Mapping[str, Any]) -> None:
    """Raise RunError if the state in a checkpoint has another form than ``Engine.state``, or contradicts itself."""
    _fitting(path, _form, state)


def check_loadable(path: str, state: Mapping[str, Any], learner: nn.Module) -> None:
    """Raise RunError if the parameters in a checkpoint can't all be loaded into this learner; nothing is changed."""
    check_state(path, state)
    mine = {"parameters": shapes(learner.state_dict())}
    check_parameters(path, state.get("identity", mine), mine)
    _fitting(path, _both, state, learner)


def check_resumable(
    path: str,
    state: Mapping[str, Any],
    identity: Mapping[str, Any],
    learner: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    hooks: Hooks,
) -> None:
    """Raise RunError if a training can't continue from the state in a checkpoint; then nothing is changed.

    If all is well, the hooks have loaded their states: only they know whether these are right.

    Args:
        path: of the checkpoint, for messages.
        state: the state.
        identity, learner, optimizer, hooks: of the engine that is to load it.
    """
    check_state(path, state)
    check_identity(path, state.get("identity", {}), identity)
    _fitting(path, _both, state, learner)
    _fitting(path, _optimizer, state["optimizer"], optimizer)
    _load_hooks(path, state["hooks"], hooks)


def check_tensors(path: str, theirs: Mapping[str, Tensor], learner: nn.Module) -> None:
    """Raise RunError if parameters from a checkpoint have other names, shapes or types than the learner's."""
    _fitting(path, _tensors, theirs, learner, "learner")


def _fitting(path: str, check: Any, *arguments: Any) -> None:
    try:
        check(*arguments)
    except Unfit as error:
        raise everywhere(RunError(f"{path}: {error}; {ADVICE}")) from None


def _form(state: Mapping[str, Any]) -> None:
    STATE(state, "")
    plain(state.get("identity"), "identity")
    # The parts of one checkpoint agree with each other, as they were taken from one learner.
    learner = state["learner"]
    stored = shapes(learner)
    recorded = state.get("identity", {}).get("parameters", stored)
    for name in dict.fromkeys([*stored, *recorded]):
        if list(recorded.get(name, ())) != stored.get(name):
            raise Unfit(f"learner.{name}", learner.get(name), f"the shape {recorded.get(name)} of its identity")
    for name in ("best", "before_closing"):
        if (best := state.get(name)) is None:
            continue
        parameters, iteration = best["parameters"], best["iteration"]
        if (parameters is None) != (iteration == -1) or iteration > state["iteration"]:
            raise Unfit(f"{name}.iteration", iteration, f"-1 without parameters, else 0 to {state['iteration']}")
        if parameters is not None:
            _same_tensors(parameters, learner, f"{name}.parameters")


def _both(state: Mapping[str, Any], learner: nn.Module) -> None:
    """Compare the last and the best parameters in a checkpoint with the learner's."""
    _tensors(state["learner"], learner, "learner")
    for name in ("best", "before_closing"):
        if (best := state.get(name)) is not None and best["parameters"] is not None:
            _tensors(best["parameters"], learner, f"{name}.parameters")


def _same_tensors(theirs: Mapping[str, Any], mine: Mapping[str, Any], key: str) -> None:
    """Raise Unfit if tensors have other names, shapes or kinds of numbers."""
    for name in dict.fromkeys([*mine, *theirs]):
        if name not in theirs or name not in mine:
            expected = "no such tensor" if name in theirs else "a tensor"
            raise Unfit(f"{key}.{name}", theirs.get(name), expected)
        got, own = theirs[name], mine[name]
        if not isinstance(got, Tensor) and not isinstance(own, Tensor):
            continue  # extra state, which only its module understands
        if not isinstance(got, Tensor) or not isinstance(own, Tensor):
            raise Unfit(f"{key}.{name}", got, "a tensor" if isinstance(own, Tensor) else "extra state of its module")
        if got.shape != own.shape or _kind(got) != _kind(own):
            raise Unfit(f"{key}.{name}", got, f"{list(own.shape)} of {str(own.dtype).removeprefix('torch.')}")


def _kind(value: Tensor) -> str:
    """Return the kind of a tensor's numbers; floating-point types of all widths are one kind."""
    return "float" if value.is_floating_point() else str(value.dtype)


def _tensors(theirs: Mapping[str, Tensor], learner: nn.Module, key: str) -> None:
    _same_tensors(theirs, learner.state_dict(), key)
    # Buffers may be infinite, as masks are; parameters that were trained never are.
    for name, parameter in learner.named_parameters():
        if parameter.requires_grad and name in theirs and not finite(theirs[name]):
            raise Unfit(f"{key}.{name}", theirs[name], "finite numbers")


def _optimizer(state: Mapping[str, Any] | None, optimizer: torch.optim.Optimizer | None) -> None:
    """Raise Unfit if an optimizer's state does not belong to an optimizer like this one."""
    if optimizer is None or state is None:
        if (optimizer is None) != (state is None):
            raise Unfit("optimizer", state, "no optimizer" if optimizer is None else "the state of one")
        return
    groups = state["param_groups"]
    if len(groups) != len(optimizer.param_groups):
        raise Unfit("optimizer.param_groups", groups, f"{len(optimizer.param_groups)} groups")
    parameters: dict[int, Tensor] = {}
    for i, (theirs, mine) in enumerate(zip(groups, optimizer.param_groups, strict=True)):
        _group(theirs, mine, f"optimizer.param_groups[{i}]", first=len(parameters))
        parameters |= zip(theirs["params"], mine["params"], strict=True)
    entries = state["state"]
    if not isinstance(entries, dict) or not all(type(key) is int and key in parameters for key in entries):
        raise Unfit("optimizer.state", entries, "a mapping by numbers of parameters")
    pattern = _pattern(optimizer)
    for index, entry in entries.items():
        key = f"optimizer.state.{index}"
        fields(dict.fromkeys(pattern, anything))(entry, key)
        for name, like in pattern.items():
            _entry(entry[name], like, parameters[index], f"{key}.{name}")


def _group(theirs: Mapping[str, Any], mine: Mapping[str, Any], key: str, *, first: int) -> None:
    """Check a group of parameters: its parameters are numbered, its options have the types of the optimizer's own."""
    numbers = list(range(first, first + len(mine["params"])))
    if theirs.get("params") != numbers or not all(type(n) is int for n in theirs["params"]):
        raise Unfit(f"{key}.params", theirs.get("params"), f"the numbers of {len(numbers)} parameters from {first}")
    # Switches that this version of torch has and another had not are set by torch; numbers are needed by every step.
    if missing := [n for n, own in mine.items() if n not in theirs and (is_finite(own) or isinstance(own, tuple))]:
        raise Unfit(key, theirs, f"values of {', '.join(missing)}")
    for name, value in theirs.items():
        own = mine.get(name)
        if name == "params":
            continue
        if name not in mine:  # of another version of torch
            plain(value, f"{key}.{name}")
        elif isinstance(own, tuple):
            rates = isinstance(value, tuple) and len(value) == len(own) and all(is_finite(v) for v in value)
            if not rates or not all(0 <= v < 1 for v in value):
                raise Unfit(f"{key}.{name}", value, f"{len(own)} numbers >= 0 and < 1")
        elif is_finite(own):
            if not is_finite(value) or value < 0:
                raise Unfit(f"{key}.{name}", value, "a number >= 0")
        elif type(value) is not type(own) or value != own:
            raise Unfit(f"{key}.{name}", value, repr(own))


def _pattern(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the state of one parameter of an optimizer of this type after one step, for a parameter of shape [1]."""
    group = {name: value for name, value in optimizer.param_groups[0].items() if name != "params"}
    parameter = nn.Parameter(torch.zeros(1))
    make: Any = type(optimizer)
    like = make([parameter])
    like.param_groups[0].update(group)
    parameter.grad = torch.zeros(1)
    like.step()
    return dict(like.state[parameter])


def _entry(value: Any, like: Any, parameter: Tensor, key: str) -> None:
    """Check one value of an optimizer's state: a tensor like the parameter, a count of steps, or nothing."""
    if isinstance(like, Tensor):
        shape = parameter.shape if like.dim() else torch.Size([])
        like_it = isinstance(value, Tensor) and value.shape == shape and value.is_floating_point()
        if not like_it or value.requires_grad:
            raise Unfit(key, value, f"a tensor {list(shape)} of floating-point numbers")
        if not finite(value) or (not like.dim() and (not 0 <= float(value) < 2**53)):
            raise Unfit(key, value, "finite numbers, and a count of steps >= 0")
    elif type(value) is not type(like):
        raise Unfit(key, value, f"a value of type {type(like).__name__}")


def _load_hooks(path: str, states: Mapping[str, Any], hooks: Hooks) -> None:
    """Let hooks load their states; if one of them fails, restore all and raise RunError."""
    before = copy.deepcopy(hooks.state())
    try:
        hooks.load(states)
    except Exception as error:
        hooks.load(before)
        if isinstance(error, KshotError) and not isinstance(error, HookError):
            raise
        raise RunError(
            f"{path}: hooks: got a state that a hook can't load ({type(error).__name__}: {error}), expected what it "
            f"wrote; {ADVICE}"
        ) from error
