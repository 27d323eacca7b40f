"""Measure a second-order meta-step of MAML: kshot against higher, TorchOpt and parallel-metalearn, in one thread.

All libraries get the same net, the same precomputed tasks and the same outer Adam; blocks of their steps alternate.
Before the measurement, each meta-gradient is compared with that of a plain loop of ``torch.autograd.grad``.

- sinusoid: 25 tasks, 10 + 10 points, mlp 1-40-40-1, one inner step at 0.01.
- omniglot: 16 tasks of 5-way 1-shot with 15 queries a class, conv4-64, one inner step at 0.4; and the peak resident
  memory of each in a process of its own, and of kshot from 1 to 256 tasks.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

from bench import Report, alternate, arguments, find_omniglot, fresh, peak, ratio_of, spread

SETTINGS: dict[str, dict[str, Any]] = {
    "sinusoid": {"meta_batch": 25, "lr": 0.01, "shape": {"shot": 10, "query": 10}},
    "omniglot": {"meta_batch": 16, "lr": 0.4, "shape": {"way": 5, "shot": 1, "query": 15}},
}


class Work:
    """The same start for everyone: net, loss and tasks.

    Args:
        name: of a setting.
        meta_batch: tasks, or the setting's own number.
    """

    def __init__(self, name: str, meta_batch: int | None = None) -> None:
        import torch
        import torch.nn.functional as F

        import kshot

        setting = SETTINGS[name]
        self.tasks = kshot.tasks(name, **setting["shape"])
        self.learner = kshot.learner("maml", self.tasks.spec, inner_lr=setting["lr"], seed=0).train()
        self.lr = setting["lr"]
        self.loss: Callable[..., Any] = F.mse_loss if name == "sinusoid" else F.cross_entropy
        # The peers differentiate what normalises by itself and keeps no running statistics.
        self.net = copy.deepcopy(self.learner.net.net).to(memory_format=torch.contiguous_format)
        for module in self.net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.track_running_stats, module.running_mean, module.running_var = False, None, None
                module.num_batches_tracked = None
        self.episodes = self.tasks.sample("train", range(meta_batch or setting["meta_batch"]))

    def each(self) -> Any:
        """Support and query of one task after another."""
        e = self.episodes
        return zip(e.support.x, e.support.y, e.query.x, e.query.y, strict=True)


def adam(parameters: Any) -> Any:
    import torch

    return torch.optim.Adam(parameters, lr=1e-3)


Arm = tuple[Any, Callable[[], None]]
"""(the net, what leaves the meta-gradient in its .grad)"""


def kshot_arm(work: Work) -> Arm:
    import kshot

    backend = kshot.backend("cpu")
    learner, episodes = backend.place(work.learner), backend.place(work.episodes)
    return learner.net.net, lambda: learner.meta_gradient(episodes)


def plain_arm(work: Work) -> Arm:
    """Compute the tasks one after another, by autograd alone."""
    import torch
    from torch.func import functional_call

    net = copy.deepcopy(work.net)

    def gradient() -> None:
        names, start = zip(*net.named_parameters(), strict=True)
        for x, y, xq, yq in work.each():
            inner = work.loss(functional_call(net, dict(zip(names, start, strict=True)), (x,)), y)
            slopes = torch.autograd.grad(inner, start, create_graph=True)
            moved = {n: p - work.lr * g for n, p, g in zip(names, start, slopes, strict=True)}
            (work.loss(functional_call(net, moved, (xq,)), yq) / work.episodes.size).backward()

    return net, gradient


def higher_arm(work: Work) -> Arm:
    """As its examples have it: a differentiable copy of net and optimizer for each task."""
    import higher
    import torch

    net = copy.deepcopy(work.net)
    sgd = torch.optim.SGD(net.parameters(), lr=work.lr)

    def gradient() -> None:
        for x, y, xq, yq in work.each():
            with higher.innerloop_ctx(net, sgd, copy_initial_weights=False) as (inner, step):
                step.step(work.loss(inner(x), y))
                (work.loss(inner(xq), yq) / work.episodes.size).backward()

    return net, gradient


def torchopt_arm(work: Work) -> Arm:
    """As its MAML example has it: MetaSGD on the net itself, whose state is taken back after each task."""
    import torchopt

    net = copy.deepcopy(work.net)
    sgd = torchopt.MetaSGD(net, lr=work.lr)

    def gradient() -> None:
        net_state = torchopt.extract_state_dict(net, by="reference", detach_buffers=True)
        sgd_state = torchopt.extract_state_dict(sgd, by="reference")
        for x, y, xq, yq in work.each():
            sgd.step(work.loss(net(x), y))
            (work.loss(net(xq), yq) / work.episodes.size).backward()
            torchopt.recover_state_dict(net, net_state)
            torchopt.recover_state_dict(sgd, sgd_state)

    return net, gradient


def parallel_arm(work: Work) -> Arm:
    """Its MAML with vmap over all tasks, its fastest setting here."""
    import torch
    from metalearn.algorithms import MAML
    from metalearn.inner_optimizers import InnerSGD
    from metalearn.loss.base import BaseLoss
    from metalearn.model_wrappers import MAML_Model

    class Plain(torch.nn.Module):
        def __init__(self, net: Any) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Any, **_: Any) -> Any:
            return self.net(x)

    class Loss(BaseLoss):  # type: ignore[misc]
        def forward(self, out_dict: Any, targets: Any, model_states: Any = None, **_: Any) -> Any:
            found = work.loss(out_dict["logits"], targets)
            return found, found.detach()

    body = copy.deepcopy(work.net)
    model = MAML_Model(backbone=Plain(body), head=Plain(torch.nn.Identity()))
    # Its step includes the optimizer's, which is what is timed; comparing gradients takes a rate of 0.
    idle = torch.optim.SGD(model.parameters(), lr=0.0)
    inner = InnerSGD(initial_fast_weights=model.get_fast_weights(), inner_lr=work.lr, first_order=False)
    algorithm = MAML(
        model=model, optimizer=idle, inner_optimizer=inner, support_loss_fn=Loss(), inner_steps=1,
        chunk_size=work.episodes.size, device=torch.device("cpu"),
    )  # fmt: skip
    e = work.episodes
    batch = (e.support.x, e.support.y, e.query.x, e.query.y)
    return body, lambda: algorithm.step(iter([batch]), training=True)


ARMS: dict[str, Callable[[Work], Arm]] = {
    "kshot": kshot_arm,
    "higher": higher_arm,
    "TorchOpt": torchopt_arm,
    "parallel-metalearn": parallel_arm,
    "a loop of autograd": plain_arm,
}


def steps_of(arm: Arm, steps: int) -> Callable[[], None]:
    net, gradient = arm
    outer = adam(net.parameters())

    def block() -> None:
        for _ in range(steps):
            outer.zero_grad()
            gradient()
            outer.step()

    return block


def gradients(arm: Arm) -> Any:
    import torch

    net, gradient = arm
    net.zero_grad()
    gradient()
    return torch.cat([p.grad.flatten() for p in net.parameters()])


def memory_of(arm: str, meta_batch: int, steps: int) -> dict[str, float]:
    """Peak resident memory in MB of some meta-steps on Omniglot, above what the process had before."""
    import torch

    torch.set_num_threads(1)
    work = Work("omniglot", meta_batch)
    block = steps_of(ARMS[arm](work), steps)
    before = peak()
    block()
    return {"before": before, "peak": peak()}


def main() -> None:
    options = arguments(__doc__, part=True)
    _, data = find_omniglot()
    if options.part:
        print(json.dumps(memory_of(**json.loads(options.options))))
        return
    import torch

    torch.set_num_threads(1)
    report = Report("maml_step", [f"data: {data}", "second order, one inner step, one torch thread"])
    for name, steps, rounds in (("omniglot", 1, 6), ("sinusoid", 20, 15)):
        steps, rounds = (1, 1) if options.quick else (steps, rounds)
        work = Work(name)
        arms = {arm: make(work) for arm, make in ARMS.items()}
        truth = gradients(arms["a loop of autograd"])
        for arm, made in arms.items():
            away = float((gradients(made) - truth).norm() / truth.norm())
            report.notes.append(f"{name}: the meta-gradient of {arm} is off by {away:.1e} of its length")
        times = alternate({arm: steps_of(made, steps) for arm, made in arms.items()}, rounds, each=steps)
        for arm, values in times.items():
            middle, least, most = spread([1000 * v for v in values])
            report.rows.append({"run": f"{name}: {arm}", "ms a meta-step": middle, "least": least, "most": most})
        for arm in list(ARMS)[1:]:
            report.ratios.append((ratio_of(times[arm], times["kshot"]), f"kshot {{}} x {arm} ({name})"))
    for arm in ARMS:
        found = fresh(__file__, "peak", arm=arm, meta_batch=16, steps=1 if options.quick else 3)
        report.notes.append(f"omniglot, 16 tasks: {arm} peaks at {found['peak']:.0f} MB, before {found['before']:.0f}")
    for tasks in (1, 4) if options.quick else (1, 16, 64, 256):
        found = fresh(__file__, "peak", arm="kshot", meta_batch=tasks, steps=1)
        more, before = found["peak"] - found["before"], found["before"]
        report.notes.append(f"omniglot, {tasks} tasks: kshot takes {more:.0f} MB above the {before:.0f} before")
    report.finish(options)


if __name__ == "__main__":
    main()
