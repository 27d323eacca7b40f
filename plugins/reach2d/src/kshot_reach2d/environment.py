"""An agent in the plane that is to reach one of several coloured objects, for B tasks at once.

The tasks follow the simulated reaching of Finn et al. 2017 (1709.04905): the target has a colour that only a
demonstration shows, and lies among distractors of other colours, at other places in each trajectory. Objects also
have a texture, which the paper's do not have: it differs in each trajectory, and says nothing about the target.

Letters: B tasks, E trajectories per task, T steps, K objects.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from attrs import frozen
from torch import Tensor

from kshot import Rollout, control
from kshot.episode import Policy, register_value
from kshot.randomness import uniform

STEP = 0.1
"""The way that the agent moves in one step, in each coordinate, if the action is 1."""

NEAR = 0.1
"""A trajectory succeeds if the agent is closer to the target than this after the last step."""

START = 0.1
"""The agent starts at most this far from the origin, in each coordinate."""

CELLS = torch.tensor([[i, j] for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)]) * (2 / 3)
"""The centres [8, 2] of the cells of a grid, without the one in which the agent starts; a cell has one object."""

JITTER = 0.2
"""An object is at most this far from the centre of its cell, in each coordinate, so two are at least 0.26 apart."""

APART = 1.5 * math.pi
"""The hues of K objects in a trajectory differ by at least this divided by K: by 90 degrees for three objects."""

FEATURES = 6
"""The numbers by which an observation describes an object: the way to it (2), its colour (2) and its texture (2)."""

MOVES = torch.tensor([[i, j] for i in (-1, 0, 1) for j in (-1, 0, 1)], dtype=torch.float32)
"""What each discrete action does, in units of ``STEP`` [9, 2]; action 4 does not move."""


@frozen(eq=False)
class Scene:
    """Store where trajectories start, and what their objects look like. All fields but ``target`` are float32.

    Attributes:
        start: where the agent starts [B, E, 2].
        objects: where the objects are [B, E, K, 2], in random order.
        colours: the cosine and the sine of their hues [B, E, K, 2].
        textures: the cosine and the sine of the angles that are their textures [B, E, K, 2].
        target: the number of the object to reach [B, E].
    """

    start: Tensor
    objects: Tensor
    colours: Tensor
    textures: Tensor
    target: Tensor

    def observed(self, at: Tensor) -> Tensor:
        """Return what the agent sees at ``at`` [B, E, 2]: for each object the way, colour and texture [B, E, 6K]."""
        way = self.objects - at[..., None, :]
        return torch.cat([way, self.colours, self.textures], -1).flatten(-2)

    def to_target(self, at: Tensor) -> Tensor:
        """Return the way to the target [B, E, 2]."""
        index = self.target[..., None, None].expand(*self.target.shape, 1, 2)
        return self.objects.gather(-2, index).squeeze(-2) - at


@frozen(eq=False)
class Environment:
    """Show the agent the way to each of K objects and their looks, and move it by its actions.

    An object has a hue and a texture, which are angles; a task is the hue of the target. In each trajectory the
    distractors have other hues, which differ from the target's and from each other by at least ``APART`` / K, and
    textures, places, start and order of the objects are random. A trajectory has T steps. The reward of each is minus
    the distance to the target after it. The score ``success`` [B, E] is whether the agent is near the target after the
    last step, and ``distracted`` whether it is then near a distractor.

    Attributes:
        hue: the target's hue in each task [B], hidden from the policy.
        key: keys of the episodes [B].
        trajectories, horizon, objects: E, T and K.
        discrete: whether actions are the numbers of ``MOVES``; otherwise they are [B, E, 2], clipped to [-1, 1].

    Example:
        >>> environment = Environment(torch.zeros(1), torch.tensor([7]), trajectories=50, horizon=20, objects=3)
        >>> played = environment.rollout(environment.expert())
        >>> tuple(played.observations.shape), float(played.scores["success"].float().mean())
        ((1, 50, 20, 18), 1.0)
    """

    hue: Tensor
    key: Tensor
    trajectories: int
    horizon: int
    objects: int
    discrete: bool = False

    def scene(self, number: int = 0) -> Scene:
        """Draw the scenes of rollout ``number``, as a function of the episodes' keys and this number."""
        key, E, K = control.rollout_key(self.key, number), self.trajectories, self.objects
        words = key.reshape(-1).cpu().numpy().view(np.uint64)

        def drawn(purpose: str, *shape: int) -> Tensor:
            numbers = torch.from_numpy(uniform(words, purpose, E * math.prod(shape)))
            return numbers.reshape(*key.shape, E, *shape)

        start = START * (2 * drawn("start", 2) - 1)
        cells = drawn("cells", len(CELLS)).argsort(-1)[..., :K]
        objects = CELLS[cells] + JITTER * (2 * drawn("places", K, 2) - 1)
        # Hues at distances of at least APART / K: equal gaps, and the rest of the circle divided at random between
        # them. The first hue is the target's.
        gaps = APART / K * torch.arange(1, K) + (2 * math.pi - APART) * drawn("hues", K - 1).sort(-1).values
        hues = self.hue.cpu().double()[..., None, None] + torch.nn.functional.pad(gaps, (1, 0))
        order = drawn("order", K).argsort(-1)
        hues = hues.gather(-1, order)
        textures = 2 * math.pi * drawn("textures", K)
        like = self.hue if self.hue.is_floating_point() else self.hue.float()
        return Scene(
            start.to(like),
            objects.to(like),
            torch.stack([hues.cos(), hues.sin()], -1).to(like),
            torch.stack([textures.cos(), textures.sin()], -1).to(like),
            (order == 0).long().argmax(-1).to(like.device),
        )

    @torch.no_grad()
    def rollout(self, policy: Policy, number: int = 0) -> Rollout:
        """Play E trajectories per task with the policy: observations [B, E, T, 6K], actions [B, E, T, 2] or [B, E, T].

        Args:
            policy: a function of the observations [B, E, 6K].
            number: the number of the rollout; each has other scenes.
        """
        scene = self.scene(number)
        form = {"way": len(MOVES)} if self.discrete else {"target_shape": (2,)}
        key = control.rollout_key(self.key, number)
        act = control.playing(policy, key, (self.trajectories, self.horizon), **form)
        at = scene.start
        seen, actions, rewards = [], [], []
        for _ in range(self.horizon):
            seen.append(scene.observed(at))
            actions.append(act(seen[-1]))
            move = MOVES.to(at)[actions[-1]] if self.discrete else actions[-1].clamp(-1, 1)
            at = at + STEP * move
            rewards.append(-scene.to_target(at).norm(dim=-1))
        near = (scene.objects - at[..., None, :]).norm(dim=-1).amin(-1) < NEAR
        success = -rewards[-1] < NEAR
        scores = {"success": success, "distracted": near & ~success}
        observations, taken = torch.stack(seen, -2), torch.stack(actions, -1 if self.discrete else -2)
        return control.recorded(observations, taken, torch.stack(rewards, -1), scores=scores)

    def expert(self, number: int = 0) -> Policy:
        """Return a policy that knows the target of rollout ``number``, reaches it by the shortest way, and stays there.

        With discrete actions it takes the move that ends closest to the target.
        """
        scene = self.scene(number)

        def act(seen: Tensor) -> Tensor:
            ways = seen.unflatten(-1, (self.objects, FEATURES))[..., :2]
            index = scene.target[..., None, None].expand(*scene.target.shape, 1, 2)
            way = ways.gather(-2, index).squeeze(-2)
            if self.discrete:
                left: Tensor = (way[..., None, :] - STEP * MOVES.to(way)).norm(dim=-1)
                return left.argmin(-1)
            # A step of full length, or the rest of the way.
            action: Tensor = way / way.norm(dim=-1, keepdim=True).clamp_min(STEP)
            return action

        return act

    def from_above(self, observations: Tensor) -> dict[str, Tensor]:
        """Return what a picture of trajectories [..., T, 6K] shows, seen from where each of them starts.

        Returns:
            ``paths`` [..., T, 2]; ``objects`` [..., K, 2] and their ``hues`` [..., K] in radians; and ``targets``
            [...], the number of the object whose hue is that of the task. The first axis of ``observations`` is B.
        """
        seen = observations.unflatten(-1, (self.objects, FEATURES))
        ways, colours = seen[..., :2], seen[..., 0, :, 2:4]
        # The way to an object shortens by the way of the agent.
        paths = ways[..., :1, 0, :] - ways[..., 0, :]
        hues = torch.atan2(colours[..., 1], colours[..., 0])
        towards = torch.cos(hues - self.hue.reshape(-1, *[1] * (hues.ndim - 1)))
        return {"paths": paths, "objects": ways[..., 0, :, :], "hues": hues, "targets": towards.argmax(-1)}


register_value(Environment, "hue", "key")
