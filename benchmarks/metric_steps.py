"""Measure a training step of each metric learner on Omniglot against a bare PyTorch loop of the same arithmetic.

Each at the episodes that it is trained on by default. The bare loops are written out below as one would write them for
one learner and one episode, over the same layers; they have kshot's malloc settings, autocast where the backend chooses
bf16, the same episodes, accuracy and Adam, but no checks, no hooks, no schedule and no reseeding. Blocks of steps take
turns in one process.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from bench import Report, alternate, arguments, find_omniglot, ratio_of, spread
from torch import Tensor

import kshot

LR = 1e-3
Answer = tuple[Tensor, Tensor]
"""Loss and accuracy."""

# -------------------- the bare loops: a learner's layers, x [n, C, H, W] class by class, N way, labels y of the queries


def embedded(learner: Any, x: Tensor) -> Tensor:
    return learner.encoder.net(x).float()


def by_logits(logits: Tensor, y: Tensor) -> Answer:
    return F.cross_entropy(logits, y), (logits.argmax(-1) == y).float().mean()


def protonet(learner: Any, x: Tensor, N: int, y: Tensor) -> Answer:
    z = embedded(learner, x)
    return by_logits(-(z[N:, None] - z[None, :N]).square().sum(-1), y)


def gaussian(learner: Any, x: Tensor, N: int, y: Tensor) -> Answer:
    z = embedded(learner, x)
    s = 1 + F.softplus(learner.raw_precision(z[:N]).float())  # at one shot prototypes are the examples themselves
    return by_logits(-((z[N:, None] - z[None, :N]).square() * s[None]).sum(-1).sqrt(), y)


def semi(learner: Any, x: Tensor, N: int, y: Tensor) -> Answer:
    z = embedded(learner, x)
    labelled, more, query = z[:N], z[N : len(z) - len(y)], z[len(z) - len(y) :]
    share = (-(more[:, None] - labelled[None]).square().sum(-1)).softmax(-1)
    prototypes = (labelled + (share[:, :, None] * more[:, None]).sum(0)) / (1 + share.sum(0))[:, None]
    return by_logits(-(query[:, None] - prototypes[None]).square().sum(-1), y)


def siamese(learner: Any, x: Tensor, N: int, y: Tensor) -> Answer:
    z = F.normalize(embedded(learner, x), dim=-1)
    labels = torch.cat([torch.arange(N), y])
    first, second = torch.triu_indices(len(z), len(z), 1)
    genuine = labels[first] == labels[second]
    distances = torch.linalg.vector_norm(z[first] - z[second], dim=-1)
    losses = torch.where(genuine, distances, (1 - distances).clamp_min(0)).square()
    active = ~genuine & (losses > 1e-12)
    near = distances < 0.5
    accuracy = (near[genuine].float().mean() + (~near[~genuine]).float().mean()) / 2
    return losses[genuine].mean() + (losses * active).sum() / active.sum().clamp_min(1), accuracy


def matching(learner: Any, x: Tensor, N: int, y: Tensor) -> Answer:
    z = F.normalize(embedded(learner, x), dim=-1)
    with torch.autocast("cpu", enabled=False):
        return by_logits(z[N:] @ z[:N].T / learner.log_temperature.exp(), y)


def relation(learner: Any, x: Tensor, N: int, y: Tensor) -> Answer:
    maps = learner.encoder.net(x)
    w_s, w_q = learner.first.weight.chunk(2, 1)
    classes = F.conv2d(maps[:N].float(), w_s, padding=1)
    queries = F.conv2d(maps[N:], w_q, learner.first.bias, padding=1)
    pairs = (queries[:, None] + classes[None]).flatten(0, 1)
    logits = learner.relation.net(pairs).float().view(-1, N)
    loss = (logits.sigmoid() - F.one_hot(y, N)).square().mean()
    return loss, (logits.argmax(-1) == y).float().mean()


BARE: dict[str, Callable[[Any, Tensor, int, Tensor], Answer]] = {
    "protonet": protonet,
    "gaussian-protonet": gaussian,
    "semi-protonet": semi,
    "siamese": siamese,
    "matchingnet": matching,
    "relationnet": relation,
}

# -------------------- measuring


def arms(
    name: str, steps: int, optimizer: str = "adam", **backend: Any
) -> tuple[dict[str, Callable[[], object]], Any, Any]:
    """A block of ``steps`` by the bare loop and by the engine, from the same parameters; the layers of the former and
    the engine."""
    learner_type: Any = type(kshot.learner(name, kshot.tasks("omniglot").spec))
    of, shape = "omniglot", {"shot": 1, **learner_type.training_defaults.tasks}
    tasks = kshot.tasks("semi-supervised", of=of, **shape) if "unlabelled" in shape else kshot.tasks(of, **shape)
    learner = kshot.learner(name, tasks.spec)
    layers = copy.deepcopy(learner)
    engine = kshot.Engine(
        learner, tasks, optimizer=kshot.Outer(name=optimizer, lr=LR), backend=kshot.backend("cpu", **backend)
    )
    layers.to(memory_format=torch.channels_last).train()
    stepper = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[optimizer](layers.parameters(), lr=LR)
    N = tasks.spec.way
    done = 0

    def bare() -> None:
        nonlocal done
        for i in range(done, done + steps):
            episode = tasks.sample("train", [i])
            support, query = episode.support, episode.query
            parts = [support.x, *([] if support.unlabelled is None else [support.unlabelled]), query.x]
            stepper.zero_grad()
            with engine.backend.autocast():
                loss, accuracy = BARE[name](layers, torch.cat(parts, 1)[0], N, query.y[0])
                loss.backward()
            loss.item()
            accuracy.item()
            stepper.step()
        done += steps

    def by_engine() -> None:
        engine.train(engine.iteration + steps)

    return {"bare loop": bare, "kshot": by_engine}, layers, engine


def difference(name: str) -> float:
    """How far the two end apart after 3 steps of plain gradient descent, by how far they went: that the arithmetic is
    the same. In float32; and Adam would make as much of a gradient that is rounding alone, as of a bias before batch
    norm."""
    runs, layers, engine = arms(name, 3, "sgd", precision="float32")
    began = torch.cat([p.detach().flatten().clone() for p in layers.parameters()])
    for run in runs.values():
        run()
    ended = [torch.cat([p.detach().flatten() for p in net.parameters()]) for net in (layers, engine.learner)]
    return float((ended[0] - ended[1]).norm() / (ended[1] - began).norm())


def main() -> None:
    options = arguments(__doc__)
    _, data = find_omniglot()
    steps, rounds = (2, 3) if options.quick else (10, 20)
    report = Report("metric_steps", [f"data: {data}"])
    for name in BARE:
        apart = difference(name)
        if not apart < 1e-3:
            raise SystemExit(
                f"{name}: kshot and the loop are {apart:.2g} of the way apart after 3 steps; not the same work"
            )
        runs, _, engine = arms(name, steps)
        times = alternate(runs, rounds, each=steps)
        spec = engine.tasks.spec
        more = f", {spec.unlabelled} unlabelled" if getattr(spec, "unlabelled", 0) else ""
        for arm, values in times.items():
            middle, least, most = spread([1e3 * v for v in values])
            shape = f"{spec.way}-way {spec.shot}-shot {spec.query}-query{more}"
            report.rows.append({"run": f"{name}, {shape}: {arm}", "ms a step": middle, "least": least, "most": most})
        report.notes.append(f"{name}: in float32 the two are {apart:.1g} of the way apart after 3 steps")
        ratio = ratio_of(times["kshot"], times["bare loop"])
        report.ratios.append((ratio, f"a step of {name} takes {{}} x that of a bare loop"))
    report.notes.append(f"backend: {json.dumps(dict(engine.backend.describe()))}")
    report.finish(options)


if __name__ == "__main__":
    main()
