"""A trained learned optimizer as a ``torch.optim.Optimizer``, for training loops of one's own.

Letters: P coordinates of the parameters of a group, H hidden units of the LSTM.
"""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kshot.errors import MisfitError, OptionError, TrainingError
from kshot.runs import load_learner
from kshot_l2l.l2l import L2L

STATE = "lstm"
"""The key under which ``Optimizer.state`` keeps the state of the LSTM for a parameter."""


class Optimizer(torch.optim.Optimizer):
    """Update parameters by an optimizer that ``l2l`` has learned.

    It takes the same steps as the learner does on an objective with these parameters as its point. All parameters of a
    group are one vector of P coordinates, and the LSTM has a state for each of them, which begins at zero.

    Args:
        params: parameters, or dictionaries with ``params`` and options (param groups), as for every torch optimizer.
        run: the folder of a run of ``l2l``, made by ``kshot train`` or in Python.
        learner: a trained ``L2L``, instead of a run. It is copied.
        lr: a factor of the learned updates, which learning rate schedulers may change. 1 is what was learned.
        import_from: as for ``kshot.runs.load_learner``.

    Raises:
        OptionError: neither or both of run and learner are given, lr is not a positive number, or a parameter does not
            require a gradient.
        MisfitError: the run is of another learner.
        RunError: the run does not exist or has no checkpoint.

    Example:
        >>> from kshot.testing import sample_tasks
        >>> weights = torch.nn.Parameter(torch.ones(3))
        >>> optimizer = Optimizer([weights], learner=L2L(sample_tasks.Quadratics().spec, hidden=5))
        >>> for _ in range(2):
        ...     optimizer.zero_grad()
        ...     weights.square().sum().backward()
        ...     optimizer.step()
        >>> bool((weights != 1).all())
        True
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        run: str | Path | None = None,
        learner: L2L | None = None,
        lr: float = 1.0,
        import_from: str | Path | None = None,
    ) -> None:
        if (run is None) == (learner is None):
            raise OptionError("kshot_l2l.Optimizer: got run and learner, or neither, expected one of them; give one")
        given = learner if learner is not None else _learner_of(run, import_from)
        self._rule: nn.Module = copy.deepcopy(given.optimizer).requires_grad_(False).eval()
        super().__init__(params, {"lr": lr})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, whose state begins at zero.

        Raises:
            OptionError: a parameter does not require a gradient or is not a real number, or lr is not positive.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for i, p in enumerate(group["params"]):
            if not p.requires_grad or not p.is_floating_point():
                raise OptionError(
                    f"kshot_l2l.Optimizer: got parameter {i} of group {len(self.param_groups) - 1} of type {p.dtype} "
                    f"with requires_grad={p.requires_grad}, expected real numbers with requires_grad=True; leave it out"
                )
        if not group["lr"] > 0:
            raise OptionError(f"kshot_l2l.Optimizer: got lr {group['lr']}, expected a positive number; 1 is as learned")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step: theta <- theta + lr * g, where [g, h] = m(gradient, h) (1606.04474, eq. 3).

        Args:
            closure: computes the loss again and its gradients; optional.

        Returns:
            The loss of the closure, or None.

        Raises:
            TrainingError: a parameter has no gradient or a sparse one, or the closure returns a vector.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
            if isinstance(loss, Tensor) and loss.numel() != 1:
                raise TrainingError(
                    f"kshot_l2l.Optimizer: got a loss of shape {list(loss.shape)} from the closure, expected a scalar; "
                    "take its mean or sum"
                )
        for number, group in enumerate(self.param_groups):
            params: list[Tensor] = group["params"]
            gradients = [_gradient(p, f"parameter {i} of group {number}") for i, p in enumerate(params)]
            if not params:
                continue
            self._rule.to(params[0].device)
            like = next(self._rule.parameters())
            # The gradient of the group [1, P], and for every coordinate the state [P, layers * 2, H].
            gradient = torch.cat([g.reshape(-1).to(like) for g in gradients])[None]
            memory = torch.cat([self._memory(p, like) for p in params])
            with torch.autocast(like.device.type, enabled=False):
                update, new = self._rule(gradient, tuple(t.contiguous() for t in memory.unbind(1)))
            sizes = [p.numel() for p in params]
            memories = torch.stack(list(new), 1).split(sizes)
            for p, change, own in zip(params, update[0].split(sizes), memories, strict=True):
                p.add_(change.view_as(p).to(p.dtype), alpha=float(group["lr"]))
                self.state[p][STATE] = own.clone()
        return loss

    def _memory(self, p: Tensor, like: Tensor) -> Tensor:
        """Return the state of the LSTM for a parameter [P, layers * 2, H], zeros before its first step."""
        if STATE in self.state[p]:
            stored: Tensor = self.state[p][STATE]
            return stored
        cells: Any = self._rule.cells
        return like.new_zeros(p.numel(), 2 * len(cells), cells[0].hidden_size)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of torch's protocol, with a digest of the learned optimizer that it belongs to."""
        return {**super().state_dict(), "learned": self.digest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the result of ``state_dict``, so that the next steps are those that would have followed.

        Raises:
            OptionError: the state belongs to another learned optimizer.
            ValueError: it has other parameter groups (by torch).
        """
        if state_dict.get("learned") != self.digest:
            raise OptionError(
                "kshot_l2l.Optimizer: got the state of another learned optimizer, expected one that was saved with the "
                "same run; build the optimizer from that run"
            )
        super().load_state_dict({n: v for n, v in state_dict.items() if n != "learned"})
        # torch converts states to the type of their parameter, which may have fewer digits.
        numbers = [i for group in state_dict["param_groups"] for i in group["params"]]
        mine = [p for group in self.param_groups for p in group["params"]]
        for number, p in zip(numbers, mine, strict=True):
            if number in state_dict["state"]:
                self.state[p][STATE] = state_dict["state"][number][STATE].to(p.device).clone()

    @property
    def digest(self) -> str:
        """Return a checksum of the weights of the learned optimizer."""
        numbers = b"".join(t.detach().cpu().contiguous().numpy().tobytes() for t in self._rule.state_dict().values())
        return hashlib.sha256(numbers).hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        """Return what copies and pickles need."""
        return {**super().__getstate__(), "_rule": self._rule}


def _gradient(p: Tensor, name: str) -> Tensor:
    """Return the gradient of a parameter.

    Raises:
        TrainingError: there is none, or it is sparse.
    """
    if p.grad is None or p.grad.is_sparse:
        kind = "no gradient" if p.grad is None else "a sparse gradient"
        raise TrainingError(
            f"kshot_l2l.Optimizer: got {kind} of {name} (shape {list(p.shape)}), expected a dense one; call backward() "
            "before step(), and leave out parameters that the loss does not use"
        )
    return p.grad


def _learner_of(run: Any, import_from: str | Path | None) -> L2L:
    """Load the learner of a run, and warn if another version of torch trained it."""
    loaded = load_learner(run, import_from=import_from)
    if not isinstance(loaded.learner, L2L):
        raise MisfitError(
            f"kshot_l2l.Optimizer: got a run of {loaded.name!r}, expected one of 'l2l'; train one: "
            "kshot train l2l quadratics"
        )
    before = loaded.versions.get("torch")
    if before is not None and before != str(torch.__version__):
        warnings.warn(
            f"kshot_l2l.Optimizer: the run {run} was trained with torch {before}, and this is {torch.__version__}; its "
            "steps may differ by rounding",
            stacklevel=3,
        )
    return loaded.learner
