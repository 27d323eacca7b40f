"""Measure a second-order meta-step of MAML: kshot against higher, TorchOpt and parallel-metalearn, in one thread.

All libraries get the same network, the same precomputed tasks and the same outer Adam; blocks of their steps alternate.
Before the measurement, each meta-gradient is compared with that of a plain loop of ``torch.autograd.grad``. A ratio is
the time of another library over that of kshot, so a value above 1 means that kshot is faster.

- sinusoid: 25 tasks with 10 support and 10 query points, mlp 1-40-40-1, one inner step at 0.01.
- omniglot: 16 tasks, 5-way 1-shot with 15 queries per class, conv4-64, one inner step at 0.4. Here the peak resident
  memory of each library is measured too, in a separate process, and that of kshot for 1 to 256 tasks.

Run ``python benchmarks/maml_step.py``; add ``--quick`` to test the script only.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

from bench import Report, alternate, arguments, find_omniglot, fresh, peak, ratio_of, require, spread

SETTINGS: dict[str, dict[str, Any]] = {
    "sinusoid": {"meta_batch": 25, "lr": 0.01, "shape": {"shot": 10, "query": 10}},
    "omniglot": {"meta_batch": 16, "lr": 0.4, "shape": {"way": 5, "shot": 1, "query": 15}},
}


class Work:
    """Build what all libraries share: network, loss and tasks.

    Args:
        name: a key of ``SETTINGS``.
        meta_batch: number of tasks; None takes that of the setting.
        backend: where all libraries compute; None is kshot's backend ``cpu``.
    """

    def __init__(self, name: str, meta_batch: int | None = None, backend: Any = None) -> None:
        import torch
        import torch.nn.functional as F

        import kshot

        setting = SETTINGS[name]
        self.tasks = kshot.tasks(name, **setting["shape"])
        self.learner = kshot.learner("maml", self.tasks.spec, inner_lr=setting["lr"], seed=0).train()
        self.lr = setting["lr"]
        self.loss: Callable[..., Any] = F.mse_loss if name == "sinusoid" else F.cross_entropy
        # The other libraries differentiate a network that normalises by its batch and keeps no running statistics.
        self.net = copy.deepcopy(self.learner.net.net).to(memory_format=torch.contiguous_format)
        for module in self.net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.track_running_stats, module.running_mean, module.running_var = False, None, None
                module.num_batches_tracked = None
        self.episodes = self.tasks.sample("train", range(meta_batch or setting["meta_batch"]))
        self.backend = backend or kshot.backend("cpu")
        if self.backend.device.type != "cpu":
            self.net, self.episodes = self.net.to(self.backend.device), self.backend.place(self.episodes)

    def each(self) -> Any:
        """Yield support inputs, support targets, query inputs and query targets of one task after another."""
        e = self.episodes
        return zip(e.support.x, e.support.y, e.query.x, e.query.y, strict=True)


def adam(parameters: Any) -> Any:
    import torch

    return torch.optim.Adam(parameters, lr=1e-3)


Arm = tuple[Any, Callable[[], None]]
"""A network, and a function that adds the meta-gradient to the ``.grad`` of its parameters."""


def kshot_arm(work: Work) -> Arm:
    """Compute by kshot's learner."""
    learner, episodes = work.backend.place(work.learner), work.backend.place(work.episodes)
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
    """Compute as in the examples of higher: with a differentiable copy of network and optimizer for each task."""
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
    """Compute as in the MAML example of TorchOpt: MetaSGD on the network, whose state is restored after each task."""
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
    """Compute by the MAML of parallel-metalearn with vmap over all tasks, which is its fastest setting here."""
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
            loss = work.loss(out_dict["logits"], targets)
            return loss, loss.detach()

    body = copy.deepcopy(work.net)
    model = MAML_Model(backbone=Plain(body), head=Plain(torch.nn.Identity()))
    # Its step includes a step of its optimizer. That one has rate 0; the Adam of ``steps_of`` moves the parameters.
    idle = torch.optim.SGD(model.parameters(), lr=0.0)
    inner = InnerSGD(initial_fast_weights=model.get_fast_weights(), inner_lr=work.lr, first_order=False)
    algorithm = MAML(
        model=model, optimizer=idle, inner_optimizer=inner, support_loss_fn=Loss(), inner_steps=1,
        chunk_size=work.episodes.size, device=work.backend.device,
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
    """Return a function that takes ``steps`` meta-steps, each with a step of Adam."""
    net, gradient = arm
    outer = adam(net.parameters())

    def block() -> None:
        for _ in range(steps):
            outer.zero_grad()
            gradient()
            outer.step()

    return block


def gradients(arm: Arm) -> Any:
    """Return the meta-gradient of all parameters as one vector."""
    import torch

    net, gradient = arm
    net.zero_grad()
    gradient()
    return torch.cat([p.grad.flatten() for p in net.parameters()])


def memory_of(arm: str, meta_batch: int, steps: int) -> dict[str, float]:
    """Return the peak resident memory in MB before and after some meta-steps on Omniglot."""
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
    require("higher", "torchopt", "metalearn")
    import torch

    torch.set_num_threads(1)
    report = Report("maml_step", [f"data: {data}", "second order, one inner step, one torch thread"])
    for name, steps, rounds in (("omniglot", 1, 6), ("sinusoid", 20, 15)):
        steps, rounds = (1, 1) if options.quick else (steps, rounds)
        work = Work(name)
        arms = {arm: make(work) for arm, make in ARMS.items()}
        truth = gradients(arms["a loop of autograd"])
        for arm, built in arms.items():
            error = float((gradients(built) - truth).norm() / truth.norm())
            report.notes.append(f"{name}: the meta-gradient of {arm} has a relative error of {error:.1e}")
        times = alternate({arm: steps_of(built, steps) for arm, built in arms.items()}, rounds, each=steps)
        for arm, values in times.items():
            middle, least, most = spread([1000 * v for v in values])
            report.rows.append({"run": f"{name}: {arm}", "ms per meta-step": middle, "least": least, "most": most})
        for arm in list(ARMS)[1:]:
            ratio = ratio_of(times[arm], times["kshot"])
            report.ratios.append((ratio, f"kshot is {{}} times as fast as {arm} ({name})"))
    for arm in ARMS:
        memory = fresh(__file__, "peak", arm=arm, meta_batch=16, steps=1 if options.quick else 3)
        report.notes.append(
            f"omniglot, 16 tasks: peak memory of {arm} {memory['peak']:.0f} MB, before the first step "
            f"{memory['before']:.0f} MB"
        )
    for tasks in (1, 4) if options.quick else (1, 16, 64, 256):
        memory = fresh(__file__, "peak", arm="kshot", meta_batch=tasks, steps=1)
        more, before = memory["peak"] - memory["before"], memory["before"]
        report.notes.append(
            f"omniglot, {tasks} tasks: a step of kshot takes {more:.0f} MB above the {before:.0f} MB before it"
        )
    report.finish(options)


if __name__ == "__main__":
    main()
