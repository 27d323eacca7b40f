"""Measure a training step of each metric learner on Omniglot against a bare PyTorch loop of the same arithmetic.

Each learner gets the episodes that it is trained on by default. The bare loops are written out below as one would write
them for one learner and one episode, over the same layers. They have kshot's malloc settings, autocast if the backend
chooses bfloat16, and the same episodes, accuracy and Adam, but no checks, hooks, schedule and reseeding. Blocks of
steps take turns in one process. A ratio is the time of a step of kshot over that of the bare loop, so 1 means no
overhead.

Run ``python benchmarks/metric_steps.py``; add ``--quick`` to test the script only. It needs the plugins of all learners
in ``BARE`` and kshot-semi-supervised.
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
LossAndAccuracy = tuple[Tensor, Tensor]

# -------------------- The bare loops: each takes a learner's layers, the images x [n, C, H, W] of support and query,
# the way N, and the labels y of the queries. The first N images are the support, one per class, in their order.


def embedded(learner: Any, x: Tensor) -> Tensor:
    return learner.encoder.net(x).float()


def by_logits(logits: Tensor, y: Tensor) -> LossAndAccuracy:
    return F.cross_entropy(logits, y), (logits.argmax(-1) == y).float().mean()


def protonet(learner: Any, x: Tensor, N: int, y: Tensor) -> LossAndAccuracy:
    z = embedded(learner, x)
    return by_logits(-(z[N:, None] - z[None, :N]).square().sum(-1), y)


def gaussian(learner: Any, x: Tensor, N: int, y: Tensor) -> LossAndAccuracy:
    z = embedded(learner, x)
    s = 1 + F.softplus(learner.raw_precision(z[:N]).float())  # at one shot prototypes are the examples themselves
    return by_logits(-((z[N:, None] - z[None, :N]).square() * s[None]).sum(-1).sqrt(), y)


def semi(learner: Any, x: Tensor, N: int, y: Tensor) -> LossAndAccuracy:
    z = embedded(learner, x)
    labelled, more, query = z[:N], z[N : len(z) - len(y)], z[len(z) - len(y) :]
    share = (-(more[:, None] - labelled[None]).square().sum(-1)).softmax(-1)
    prototypes = (labelled + (share[:, :, None] * more[:, None]).sum(0)) / (1 + share.sum(0))[:, None]
    return by_logits(-(query[:, None] - prototypes[None]).square().sum(-1), y)


def siamese(learner: Any, x: Tensor, N: int, y: Tensor) -> LossAndAccuracy:
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


def matching(learner: Any, x: Tensor, N: int, y: Tensor) -> LossAndAccuracy:
    z = F.normalize(embedded(learner, x), dim=-1)
    with torch.autocast("cpu", enabled=False):
        return by_logits(z[N:] @ z[:N].T / learner.log_temperature.exp(), y)


def relation(learner: Any, x: Tensor, N: int, y: Tensor) -> LossAndAccuracy:
    maps = learner.encoder.net(x)
    w_s, w_q = learner.first.weight.chunk(2, 1)
    classes = F.conv2d(maps[:N].float(), w_s, padding=1)
    queries = F.conv2d(maps[N:], w_q, learner.first.bias, padding=1)
    pairs = (queries[:, None] + classes[None]).flatten(0, 1)
    logits = learner.relation.net(pairs).float().view(-1, N)
    loss = (logits.sigmoid() - F.one_hot(y, N)).square().mean()
    return loss, (logits.argmax(-1) == y).float().mean()


BARE: dict[str, Callable[[Any, Tensor, int, Tensor], LossAndAccuracy]] = {
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
    """Return two functions that take ``steps`` steps each, the layers of the bare loop, and the engine.

    The functions are the bare loop and the engine; both start from the same parameters.
    """
    learner_type: Any = type(kshot.learner(name, kshot.tasks("omniglot").spec))
    of, shape = "omniglot", {"shot": 1, **learner_type.training_defaults.tasks}
    tasks = kshot.tasks("semi-supervised", of=of, **shape) if "unlabelled" in shape else kshot.tasks(of, **shape)
    learner = kshot.learner(name, tasks.spec)
    layers = copy.deepcopy(learner)
    engine = kshot.Engine(
        learner, tasks, optimizer=kshot.Outer(name=optimizer, lr=LR), backend=kshot.backend("cpu", **backend)
    )
    layers.to(memory_format=torch.channels_last).train()
    # Adam is fused, as in kshot's engine.
    made: Any = torch.optim.Adam(layers.parameters(), lr=LR, fused=True) if optimizer == "adam" else None
    stepper = made or torch.optim.SGD(layers.parameters(), lr=LR)
    N = tasks.spec.way
    done = 0  # steps that the bare loop has taken; the next step uses the episode of this index

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
            # The engine logs both values after each step, which waits for the computation; so does this loop.
            loss.item()
            accuracy.item()
            stepper.step()
        done += steps

    def by_engine() -> None:
        engine.train(engine.iteration + steps)

    return {"bare loop": bare, "kshot": by_engine}, layers, engine


def difference(name: str) -> float:
    """Return the distance between the parameters of both after 3 steps, relative to the length of the way.

    A small value shows that both do the same arithmetic. The steps are plain gradient descent in float32. Adam would
    take a step of full length also for a gradient that consists of rounding errors, such as that of a bias before batch
    norm.
    """
    runs, layers, engine = arms(name, 3, "sgd", precision="float32")
    start = torch.cat([p.detach().flatten().clone() for p in layers.parameters()])
    for run in runs.values():
        run()
    ends = [torch.cat([p.detach().flatten() for p in net.parameters()]) for net in (layers, engine.learner)]
    return float((ends[0] - ends[1]).norm() / (ends[1] - start).norm())


def main() -> None:
    options = arguments(__doc__)
    _, data = find_omniglot()
    steps, rounds = (2, 3) if options.quick else (10, 20)
    report = Report("metric_steps", [f"data: {data}"])
    for name in BARE:
        apart = difference(name)
        if not apart < 1e-3:
            raise SystemExit(
                f"{name}: got a relative distance of {apart:.2g} between kshot and the loop after 3 steps, expected "
                "less than 0.001: they do not do the same work"
            )
        runs, _, engine = arms(name, steps)
        times = alternate(runs, rounds, each=steps)
        spec = engine.tasks.spec
        more = f", {spec.unlabelled} unlabelled" if getattr(spec, "unlabelled", 0) else ""
        for arm, values in times.items():
            middle, least, most = spread([1e3 * v for v in values])
            shape = f"{spec.way}-way {spec.shot}-shot {spec.query}-query{more}"
            report.rows.append({"run": f"{name}, {shape}: {arm}", "ms per step": middle, "least": least, "most": most})
        report.notes.append(f"{name}: after 3 steps in float32 the relative distance of the two is {apart:.1g}")
        ratio = ratio_of(times["kshot"], times["bare loop"])
        report.ratios.append((ratio, f"a step of {name} takes {{}} times as long as that of a bare loop"))
    report.notes.append(f"backend: {json.dumps(dict(engine.backend.describe()))}")
    report.finish(options)


if __name__ == "__main__":
    main()
