"""Measure meta-steps of MAML on small and large networks, for 1 to 200 tasks and 1 or 5 inner steps, in one thread.

kshot runs with each strategy of ``kshot.Lift``: ``auto`` once its trace is made, ``compiled``, and what it does before
there is a trace (``untraced``). It is compared with a loop of ``torch.autograd.grad``, and, where they are installed,
with both modes of parallel-metalearn and with JAX, whose ``jit`` compiles the whole step with the optimizer. All have
the same network, the same precomputed tasks and Adam at 1e-3 (torch's fused one, as in kshot's engine); their blocks
of steps alternate. Before the measurement each meta-gradient is compared with that of the loop, and in float64 with
that of higher, if it is installed. A ratio above 1 means that kshot is faster.

- mlp: 5-way 1-shot with 5 queries per class on vectors of 50 numbers, 50-40-40-5.
- sinusoid: 10 support and 10 query points, 1-40-40-1.
- conv4: Omniglot, 5-way 1-shot with 1 query per class, conv4-64.

Run ``python benchmarks/inner_loop.py``; add ``--quick`` to test the script only. It needs no other package, and names
those that are absent. ``--processor-time`` measures the time of the processor instead of that of the clock, which is
right on a machine that is not idle; ``--only mlp`` measures one network.
"""

from __future__ import annotations

import copy
import importlib.util
import time
from collections.abc import Callable
from typing import Any

from bench import Report, alternate, arguments, find_omniglot, ratio_of, spread

SMALL = [("mlp", tasks, steps) for tasks in (1, 25, 100, 200) for steps in (1, 5)]
SMALL += [("sinusoid", tasks, steps) for tasks in (1, 25, 100, 200) for steps in (1, 5)]
LARGE = [("conv4", 1, 1), ("conv4", 8, 5), ("conv4", 16, 1)]
LEARNING_RATE = {"mlp": 0.1, "sinusoid": 0.01, "conv4": 0.4}

Block = Callable[[], None]
Gradient = Callable[[], Any]


class Work:
    """Build the network and the tasks that all libraries share."""

    def __init__(self, net: str, tasks: int, steps: int) -> None:
        import torch
        import torch.nn.functional as F

        import kshot

        self.net_name, self.steps, self.lr = net, steps, LEARNING_RATE[net]
        if net == "mlp":
            chance = torch.Generator().manual_seed(0)
            y = torch.arange(60).repeat_interleave(20)
            x = torch.randn(60, 50, generator=chance)[y] + torch.randn(len(y), 50, generator=chance)
            pool = kshot.Pool.of(x.numpy(), y.numpy())
            made: Any = kshot.ClassificationTasks({"train": pool}, way=5, shot=1, query=5)
        elif net == "sinusoid":
            made = kshot.tasks("sinusoid", shot=10, query=10)
        else:
            made = kshot.tasks("omniglot", way=5, shot=1, query=1)
        self.tasks, self.episodes = made, made.sample("train", range(tasks))
        self.loss: Callable[..., Any] = F.mse_loss if net == "sinusoid" else F.cross_entropy
        # The other libraries differentiate a network that normalises by its batch and keeps no running statistics.
        self.net = copy.deepcopy(self.learner("auto").net.net)
        for module in self.net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.track_running_stats, module.running_mean, module.running_var = False, None, None
                module.num_batches_tracked = None

    def learner(self, strategy: str) -> Any:
        import kshot

        options = {"inner_lr": self.lr, "inner_steps": self.steps, "strategy": strategy, "seed": 0}
        return kshot.learner("maml", self.tasks.spec, **options).train()

    def each(self) -> Any:
        """Yield support inputs, support targets, query inputs and query targets of one task after another."""
        e = self.episodes
        return zip(e.support.x, e.support.y, e.query.x, e.query.y, strict=True)


def stepping(net: Any, gradient: Gradient) -> tuple[Block, Gradient]:
    """Return a function that takes a step of Adam, and one that returns the meta-gradient as a vector."""
    import torch

    outer = torch.optim.Adam(net.parameters(), lr=1e-3, fused=True)

    def step() -> None:
        outer.zero_grad()
        gradient()
        outer.step()

    def vector() -> Any:
        outer.zero_grad()
        gradient()
        return torch.cat([p.grad.flatten() for p in net.parameters()])

    return step, vector


def kshot_arm(work: Work, strategy: str) -> tuple[Block, Gradient]:
    """Compute by kshot's learner, after its trace is made."""
    import kshot
    from kshot.inner import replays

    backend = kshot.backend("cpu")
    # The trace of ``auto`` is that of ``traced``, which does not wait for a hundred runs.
    learner = backend.place(work.learner({"auto": "traced", "untraced": "auto"}.get(strategy, strategy)))
    episodes = backend.place(work.episodes)
    if strategy == "untraced":
        learner.lift._replays = replays.Replays("vmap")
    for _ in range(3):
        learner.zero_grad()
        learner.meta_gradient(episodes)
    return stepping(learner.net.net, lambda: learner.meta_gradient(episodes))


def loop_arm(work: Work) -> tuple[Block, Gradient]:
    """Compute the tasks one after another, by autograd alone."""
    import torch
    from torch.func import functional_call

    net = copy.deepcopy(work.net)

    def gradient() -> None:
        names, start = zip(*net.named_parameters(), strict=True)
        for x, y, xq, yq in work.each():
            moved = list(start)
            for _ in range(work.steps):
                inner = work.loss(functional_call(net, dict(zip(names, moved, strict=True)), (x,)), y)
                slopes = torch.autograd.grad(inner, moved, create_graph=True)
                moved = [p - work.lr * g for p, g in zip(moved, slopes, strict=True)]
            outer = work.loss(functional_call(net, dict(zip(names, moved, strict=True)), (xq,)), yq)
            (outer / work.episodes.size).backward()

    return stepping(net, gradient)


def parallel_arm(work: Work, mode: str) -> tuple[Block, Gradient]:
    """Compute by the MAML of parallel-metalearn: ``vmap`` over all tasks, or ``sequential``."""
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
    # Its step includes a step of its optimizer. That one has rate 0; the Adam of ``stepping`` moves the parameters.
    idle = torch.optim.SGD(model.parameters(), lr=0.0)
    inner = InnerSGD(initial_fast_weights=model.get_fast_weights(), inner_lr=work.lr, first_order=False)
    algorithm = MAML(
        model=model, optimizer=idle, inner_optimizer=inner, support_loss_fn=Loss(), inner_steps=work.steps,
        chunk_size=work.episodes.size, device=torch.device("cpu"), backend=mode,
    )  # fmt: skip
    e = work.episodes
    batch = (e.support.x, e.support.y, e.query.x, e.query.y)
    return stepping(body, lambda: algorithm.step(iter([batch]), training=True))


def jax_arm(work: Work) -> tuple[Block, Gradient]:
    """Compute by JAX: one jitted function of the parameters, Adam's moments and the tasks."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import torch

    jax.config.update("jax_platforms", "cpu")
    theta = [jnp.asarray(p.detach().numpy()) for p in work.net.parameters()]
    e = work.episodes
    data = tuple(jnp.asarray(t.numpy()) for t in (e.support.x, e.support.y, e.query.x, e.query.y))

    def outputs(theta: Any, x: Any) -> Any:
        for i in range(0, len(theta), 2):
            x = x @ theta[i].T + theta[i + 1]
            x = jax.nn.relu(x) if i + 2 < len(theta) else x
        return x

    def loss(theta: Any, x: Any, y: Any) -> Any:
        out = outputs(theta, x)
        if work.net_name == "sinusoid":
            return jnp.mean((out - y) ** 2)
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(out), y[:, None], 1))

    def task(theta: Any, x: Any, y: Any, xq: Any, yq: Any) -> Any:
        for _ in range(work.steps):
            theta = [p - work.lr * g for p, g in zip(theta, jax.grad(loss)(theta, x, y), strict=True)]
        return loss(theta, xq, yq)

    def mean(theta: Any, data: Any) -> Any:
        return jnp.mean(jax.vmap(task, in_axes=(None, 0, 0, 0, 0))(theta, *data))

    @jax.jit
    def adam(theta: Any, m: Any, v: Any, t: Any, data: Any) -> Any:
        gradients = jax.grad(mean)(theta, data)
        m = [0.9 * a + 0.1 * g for a, g in zip(m, gradients, strict=True)]
        v = [0.999 * a + 0.001 * g * g for a, g in zip(v, gradients, strict=True)]
        scale = jnp.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        return [p - 1e-3 * scale * a / (jnp.sqrt(b) + 1e-8) for p, a, b in zip(theta, m, v, strict=True)], m, v

    state = [theta, [jnp.zeros_like(p) for p in theta], [jnp.zeros_like(p) for p in theta], 0]
    only = jax.jit(jax.grad(mean))

    def step() -> None:
        state[3] += 1
        state[:3] = adam(*state[:3], float(state[3]), data)
        jax.block_until_ready(state[0])

    def vector() -> Any:
        return torch.from_numpy(np.concatenate([np.asarray(g).ravel() for g in only(theta, data)]))

    return step, vector


def exactness(steps: int) -> str:
    """Compare the meta-gradients of all strategies and of higher in float64, and return a sentence about it."""
    import torch
    from torch.utils import _pytree as pytree

    work = Work("mlp", 4, steps)
    double = lambda t: t.double() if t.is_floating_point() else t  # noqa: E731
    work.net = work.net.double()
    work.episodes = pytree.tree_map_only(torch.Tensor, double, work.episodes)
    vectors = {"a loop of autograd": loop_arm(work)[1]()}
    for name, strategy, chunk in (
        ("traced", "traced", None), ("compiled", "compiled", None), ("vmapped", "vmap", None),
        ("chunked", "vmap", 3), ("looped", "loop", None),
    ):  # fmt: skip
        learner = work.learner(strategy).double()
        learner.lift.chunk = chunk
        for _ in range(2):  # the second is a replay
            learner.zero_grad()
            learner.meta_gradient(work.episodes)
        vectors[name] = torch.cat([p.grad.flatten() for p in learner.net.net.parameters()])
    if importlib.util.find_spec("higher"):
        vectors["higher"] = higher_gradient(work)
    truth = vectors["a loop of autograd"]
    worst = max(float((v - truth).abs().max()) for v in vectors.values())
    return f"float64, mlp, 4 x {steps}: {', '.join(vectors)} differ by at most {worst:.0e}"


def higher_gradient(work: Work) -> Any:
    """Return the meta-gradient that higher computes."""
    import higher
    import torch

    net = copy.deepcopy(work.net)
    for x, y, xq, yq in work.each():
        sgd = torch.optim.SGD(net.parameters(), lr=work.lr)
        with higher.innerloop_ctx(net, sgd, copy_initial_weights=False) as (moved, descent):
            for _ in range(work.steps):
                descent.step(work.loss(moved(x), y))
            (work.loss(moved(xq), yq) / work.episodes.size).backward()
    return torch.cat([p.grad.flatten() for p in net.parameters()])


def arms_of(work: Work) -> dict[str, tuple[Block, Gradient]]:
    """Build all arms whose packages are installed."""
    # To compile the trace of conv4 takes minutes, and saves a tenth of the time.
    ours = ("auto", "untraced") if work.net_name == "conv4" else ("auto", "compiled", "untraced")
    arms = {name: kshot_arm(work, name) for name in ours}
    arms["loop"] = loop_arm(work)
    if importlib.util.find_spec("metalearn"):
        arms |= {f"parallel-metalearn, {mode}": parallel_arm(work, mode) for mode in ("vmap", "sequential")}
    if importlib.util.find_spec("jax") and work.net_name != "conv4":
        arms["JAX jit"] = jax_arm(work)
    return arms


def main() -> None:
    options = arguments(__doc__, rows=True)
    _, data = find_omniglot()
    import torch

    torch.set_num_threads(1)
    report = Report("inner_loop", [f"data: {data}", "second order, one torch thread, a step of Adam included"])
    for module in ("metalearn", "jax"):
        if importlib.util.find_spec(module) is None:
            report.notes.append(f"{module} is absent")
    clock = time.process_time if options.processor_time else time.perf_counter
    if options.processor_time:
        report.notes.append("the time of the processor, because the machine is not idle")
    report.notes += [exactness(steps) for steps in ((1,) if options.quick else (1, 3, 5) if not options.only else ())]
    for net, tasks, steps in [*SMALL, *LARGE] if not options.quick else [("mlp", 2, 1), ("conv4", 1, 1)]:
        if not f"{net}, {tasks} x {steps}".startswith(options.only):
            continue
        work = Work(net, tasks, steps)
        arms = arms_of(work)
        truth = arms["loop"][1]()
        errors = {name: float((vector() - truth).norm() / truth.norm()) for name, (_, vector) in arms.items()}
        worst = max(errors, key=lambda name: errors[name])
        each = 1 if net == "conv4" or options.quick else max(1, 200 // (tasks * steps))

        def block(step: Block, count: int = each) -> Block:
            def run() -> None:
                for _ in range(count):
                    step()

            return run

        rounds = 1 if options.quick else 5 if net == "conv4" else 9
        times = alternate({name: block(step) for name, (step, _) in arms.items()}, rounds, each=each, clock=clock)
        row = f"{net}, {tasks} x {steps}"
        middle = {name: spread([1000 * v for v in values])[0] for name, values in times.items()}
        cells = {name: middle.get(name, "-") for name in dict.fromkeys((*arms, "compiled", "JAX jit"))}
        report.rows.append({"ms per meta-step": row, **cells, "greatest error": f"{errors[worst]:.0e} ({worst})"})
        parallel = [name for name in arms if name.startswith("parallel")]
        faster = [min(parallel, key=lambda name: middle[name])] if parallel else []
        for ours in ("auto", "compiled") if "compiled" in arms else ("auto",):
            for other in (*faster, "loop", "untraced", *(["JAX jit"] if "JAX jit" in arms else [])):
                ratio = ratio_of(times[other], times[ours])
                report.ratios.append((ratio, f"{row}: {ours} is {{}} times as fast as {other}"))
    report.finish(options)


if __name__ == "__main__":
    main()
