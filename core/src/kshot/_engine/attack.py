"""Attack a learner at evaluation: change its inputs by small amounts that make the loss of its predictor large.

Letters: B episodes, N way, S support size, n queries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import attrs
import torch
import torch.nn.functional as F
from attrs import frozen
from torch import Tensor

from kshot.episode import Episode, Predictor
from kshot.errors import MisfitError, OptionError
from kshot.functional import fgsm, pgd
from kshot.randomness import uniform_as
from kshot.registry.options import validate
from kshot.registry.ranges import Count, Positive, Range
from kshot.spec import TaskSpec


@frozen
class Attack:
    """Describe an attack on the predictor of a learner, for classification tasks.

    The attacker knows the learner, its parameters and the true labels (a white-box attack). The support is attacked by
    the gradient of the predictor that adapted to the clean support; then the learner adapts to the attacked support.
    The queries are attacked by the gradient of the predictor that will predict them. Unlabelled and external examples
    are not attacked. An attack of a learner whose gradient is nearly flat is weak, which does not prove robustness.

    Attributes:
        name: ``fgsm``, one step of size epsilon, or ``pgd``, several steps; see ``kshot.functional``.
        epsilon: the greatest change of a number of an input, in its units. Inputs stay in the spec's ``input_range``;
            if that is None, they are not clipped.
        on: what is attacked: ``query``, ``support`` or ``both``.
        steps: of pgd, the number of steps; None for 10.
        step_size: of pgd, the change of a number in one step; None for 2.5 epsilon / steps.
        random_start: of pgd, whether to start at a random change, which depends on the episode's key alone; None for
            True.

    Raises:
        OptionError: a field has a value that is not allowed, or is one of pgd and given for fgsm.

    Example:
        >>> Attack("pgd", epsilon=0.1, steps=5).plain()
        {'name': 'pgd', 'epsilon': 0.1, 'on': 'query', 'steps': 5, 'step_size': 0.05, 'random_start': True}
    """

    name: Literal["fgsm", "pgd"] = "fgsm"
    epsilon: Annotated[float, Range(0)] = attrs.field(kw_only=True)
    on: Literal["query", "support", "both"] = attrs.field(default="query", kw_only=True)
    steps: Count | None = attrs.field(default=None, kw_only=True)
    step_size: Positive | None = attrs.field(default=None, kw_only=True)
    random_start: bool | None = attrs.field(default=None, kw_only=True)

    def __attrs_post_init__(self) -> None:
        validate(type(self), attrs.asdict(self), who="attack")
        extra = [name for name in ("steps", "step_size", "random_start") if getattr(self, name) is not None]
        if self.name == "fgsm" and extra:
            raise OptionError(
                f"attack: got {', '.join(extra)} for fgsm, which takes one step; expected none of them; leave them "
                "out or choose the attack pgd"
            )

    @classmethod
    def of(cls, options: Attack | Mapping[str, Any] | str | None, spec: TaskSpec | None = None) -> Attack | None:
        """Return an attack from its fields, or None.

        Args:
            options: an attack, its fields, its name, or None.
            spec: of the tasks, to check that they can be attacked.

        Raises:
            OptionError: a field is unknown or missing, or has a wrong value; the message lists all fields.
            MisfitError: the tasks are not classification tasks, or have no support to attack.
        """
        if options is None:
            return None
        if not isinstance(options, Attack):
            options = cls(**validate(cls, {"name": options} if isinstance(options, str) else options, who="attack"))
        if spec is not None:
            options.check(spec)
        return options

    def plain(self) -> dict[str, Any]:
        """Return the attack as plain values, with the numbers that are used; a result records them."""
        values: dict[str, Any] = {"name": self.name, "epsilon": self.epsilon, "on": self.on}
        if self.name == "pgd":
            steps = 10 if self.steps is None else self.steps
            size = 2.5 * self.epsilon / steps if self.step_size is None else self.step_size
            random = self.random_start is not False
            values |= {"steps": steps, "step_size": size, "random_start": random}
        return values

    def check(self, spec: TaskSpec) -> None:
        """Check that tasks can be attacked.

        Raises:
            MisfitError: they are not classification tasks, or have no support to attack.
        """
        if spec.kind != "classification":
            raise MisfitError(
                f"attack: got {spec.kind} tasks, expected classification, where a small change of an input leaves its "
                "label as it is; evaluate without an attack"
            )
        if self.on != "query" and spec.shot == 0:
            raise MisfitError("attack: got tasks without support examples, expected some; attack the queries only")

    def support(self, adapt: Callable[[Episode], Predictor], episode: Episode, spec: TaskSpec) -> Episode:
        """Return the episode with an attacked support, or as it is if the support is not attacked.

        Args:
            adapt: from an episode to the predictor of the learner that has adapted to it.
        """
        if self.on == "query":
            return episode
        support = episode.support
        x = self._attacked(adapt(episode), support.x, support.y, support.key, spec, "support")
        return attrs.evolve(episode, support=attrs.evolve(support, x=x))

    def query(self, predictor: Predictor, episode: Episode, spec: TaskSpec) -> Episode:
        """Return the episode with attacked queries, or as it is if they are not attacked."""
        if self.on == "support":
            return episode
        query = episode.query
        x = self._attacked(predictor, query.x, query.y, episode.support.key, spec, "query")
        return attrs.evolve(episode, query=attrs.evolve(query, x=x))

    def _attacked(self, predictor: Predictor, x: Tensor, y: Tensor, keys: Tensor, spec: TaskSpec, part: str) -> Tensor:
        """Return the inputs [B, n, *input] that are to mislead the predictor about the labels [B, n]."""
        plain = self.plain()
        within: dict[str, Any] = {"epsilon": self.epsilon, "input_range": spec.input_range}

        def gradient(x: Tensor) -> Tensor:
            return _gradient(predictor, x, y)

        if self.name == "fgsm":
            return fgsm(gradient, x, **within)
        start = self.epsilon * uniform_as(x, keys, f"attack {part}") if plain["random_start"] else None
        return pgd(gradient, x, steps=plain["steps"], step_size=plain["step_size"], start=start, **within)


def _gradient(predictor: Predictor, x: Tensor, y: Tensor) -> Tensor:
    """Compute the gradient, by x [B, n, *input], of the cross-entropy of the predictor's logits [B, n, N].

    Raises:
        MisfitError: the predictions are not differentiable by the inputs.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        logits = predictor(x)
        gradient = None
        if logits.requires_grad:
            # The sum, because the episodes are independent, and the scale of the loss does not matter.
            loss = F.cross_entropy(logits.float().flatten(0, 1), y.flatten(), reduction="sum")
            (gradient,) = torch.autograd.grad(loss, x, allow_unused=True)
    if gradient is None:
        raise MisfitError(
            "attack: got a predictor whose predictions have no derivative by the inputs, expected a differentiable "
            "one; if the learner predicts under torch.no_grad or outside torch, evaluate it without an attack"
        )
    return gradient
