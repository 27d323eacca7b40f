"""Measure training steps on a GPU: kshot against the CPU, and against other libraries on the same GPU.

It prints within five minutes, on any machine with a GPU:

- protonet and MAML with conv4-64: the time of a step on the device and on the CPU, and the peak memory on the device;
- MAML of kshot against higher, TorchOpt, parallel-metalearn and a loop of ``torch.autograd.grad``, and protonet against
  easyfsl, all on the device; libraries that are not installed are named;
- meta-steps of MAML that are traced, and captured as CUDA graphs on an NVIDIA GPU, against those that are not;
- how far gradients on the device are from those of the CPU in float64, in float32 and in bfloat16;
- tasks per second for 1 to 512 tasks per step, and episodes per second with the examples on the device and on the host.

A ratio is the time of the other over that of kshot on the device, so a value above 1 means that kshot is faster. All
libraries compute in float32 without TF32, unless a row says bfloat16. Run ``python benchmarks/gpu.py``; ``--device cpu
--quick`` tests the script on a machine without a GPU.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import time
from collections.abc import Callable
from typing import Any

import maml_step
from bench import Report, alternate, easyfsl_conv4, easyfsl_step, find_omniglot, ratio_of, spread

OTHERS = {"higher": "higher", "TorchOpt": "torchopt", "parallel-metalearn": "metalearn", "a loop of autograd": "torch"}
"""The arms of maml_step.py besides kshot, and the module that each needs."""

PROTONET = {"way": 20, "shot": 5, "query": 15}


class Machine:
    """Bring together what depends on the device.

    Args:
        device: ``cuda``, ``mps`` or ``cpu``.
        seconds: time for the whole script; when it is used up, the remaining parts are left out and named.
    """

    def __init__(self, device: str, seconds: float) -> None:
        import torch

        self.torch, self.name = torch, device
        self.until = time.monotonic() + seconds
        self.left_out: list[str] = []

    def backend(self, precision: str = "float32", **options: Any) -> Any:
        """Build kshot's backend."""
        import kshot

        return kshot.backend(self.name, precision=precision, **options)

    def wait(self) -> None:
        """Wait until the device has computed everything."""
        if self.name != "cpu":
            self.torch.get_device_module(self.name).synchronize()

    def peak(self, run: Callable[[], object]) -> float | str:
        """Return the most memory in MB that torch has allocated on the device during ``run``."""
        if self.name != "cuda":
            run()
            return "-"
        self.wait()
        self.torch.cuda.empty_cache()
        self.torch.cuda.reset_peak_memory_stats()
        run()
        self.wait()
        return float(self.torch.cuda.max_memory_allocated()) / 2**20

    def waiting(self, run: Callable[[], object]) -> Callable[[], None]:
        """Return a function that runs and waits, for a measurement of time."""

        def both() -> None:
            run()
            self.wait()

        return both

    def has_time(self, part: str) -> bool:
        """Return whether there is time for another part; if not, it is named in the report."""
        if time.monotonic() < self.until:
            return True
        self.left_out.append(part)
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", choices=["cuda", "mps", "cpu"], help="by default the device that kshot chooses")
    parser.add_argument("--seconds", type=float, default=270.0, help="time after which no other part begins")
    parser.add_argument("--quick", action="store_true", help="only test the script; the figures mean nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    options = parser.parse_args()
    _, data = find_omniglot()
    import torch

    import kshot

    machine = Machine(options.device or str(kshot.backend().describe()["name"]), options.seconds)
    try:
        described = machine.backend().describe()
    except kshot.errors.PluginError as error:
        raise SystemExit(str(error)) from None
    # Not only kshot: all libraries compute float32 products without TF32.
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    report = Report("gpu", [f"data: {data}", f"backend of kshot: {dict(described)}"])
    absent = [name for name, module in {**OTHERS, "easyfsl": "easyfsl"}.items() if not importlib.util.find_spec(module)]
    if absent:
        report.notes.append(f"absent, so not compared: {', '.join(absent)} (benchmarks/requirements.txt)")
    steps = [
        ("agreement", lambda: agreement(machine, report, options.quick)),
        ("protonet", lambda: protonet(machine, report, options.quick, "easyfsl" not in absent)),
        ("sampling", lambda: sampling(machine, report, options.quick)),
        ("MAML", lambda: maml(machine, report, options.quick, absent)),
        ("traced meta-steps", lambda: traced(machine, report, options.quick)),
        ("tasks per second", lambda: throughput(machine, report, options.quick)),
    ]
    for name, step in steps:
        if machine.has_time(name):
            started = time.monotonic()
            step()
            report.notes.append(f"the part {name} took {time.monotonic() - started:.0f} s")
    if machine.left_out:
        report.notes.append(f"no time was left for: {', '.join(machine.left_out)}; raise --seconds")
    report.finish(options)


def row(report: Report, run: str, seconds: list[float], memory: float | str = "-") -> None:
    """Add the times of a step to the table."""
    middle, least, most = spread([1000 * s for s in seconds])
    report.rows.append({"run": run, "ms": middle, "least": least, "most": most, "peak MB": memory})


def agreement(machine: Machine, report: Report, quick: bool) -> None:
    """Compare gradients on the device with those of the CPU in float64."""
    import kshot

    for name, shape in (("protonet", PROTONET), ("maml", {"way": 5, "shot": 1, "query": 15})):
        tasks = kshot.tasks("omniglot", **({"way": 3, "shot": 1, "query": 2} if quick else shape))
        episodes = tasks.sample("train", range(1 if quick else 4))
        learner = kshot.learner(name, tasks.spec, seed=0).train()

        def gradient(backend: Any, double: bool = False, learner: Any = learner, episodes: Any = episodes) -> Any:
            # The learner is copied, since each backend moves the one that it is given.
            own, batch = backend.place(copy.deepcopy(learner)), backend.place(episodes)
            if double:
                own, batch = own.double(), kshot.episode.map_tensors(widened, batch)
            with backend.autocast():
                own.meta_gradient(batch)
            return machine.torch.cat([p.grad.flatten().double().cpu() for p in own.parameters() if p.grad is not None])

        exact = gradient(kshot.Cpu(precision="float32", memory_format="contiguous"), double=True)
        arms = {
            f"{machine.name} in float32": machine.backend(),
            f"{machine.name} in bfloat16": machine.backend("bfloat16"),
            "cpu in float32": kshot.Cpu(precision="float32", memory_format="contiguous"),
        }
        if machine.name == "cuda":
            arms["cuda in float32 with TF32"] = machine.backend(tf32=True)
        for arm, backend in arms.items():
            error = float((gradient(backend) - exact).norm() / exact.norm())
            report.notes.append(f"{name}: the gradient of {arm} has a relative error of {error:.1e} (to float64)")


def widened(tensor: Any) -> Any:
    """Return a floating-point tensor as float64."""
    return tensor.double() if tensor.is_floating_point() else tensor


def protonet(machine: Machine, report: Report, quick: bool, easyfsl: bool) -> None:
    """Time steps of prototypical networks, with the episode in place: the device, the CPU, easyfsl on the device."""
    import torch

    import kshot

    tasks = kshot.tasks("omniglot", **({"way": 5, "shot": 1, "query": 2} if quick else PROTONET))
    episode = tasks.sample("train", [0])

    def arm(backend: Any) -> Callable[[], None]:
        learner, batch = backend.place(kshot.learner("protonet", tasks.spec, seed=0)).train(), backend.place(episode)
        adam = torch.optim.Adam(learner.parameters(), lr=1e-3)

        def step() -> None:
            adam.zero_grad()
            with backend.autocast():
                metrics = learner.meta_gradient(batch)
            adam.step()
            float(metrics["loss"])  # as the engine, which logs it

        return machine.waiting(step)

    here = f"{machine.name} in float32"
    arms = {here: arm(machine.backend()), f"{machine.name} in bfloat16": arm(machine.backend("bfloat16"))}
    if machine.name != "cpu":
        arms["cpu"] = arm(kshot.backend("cpu"))
    if easyfsl:
        from easyfsl.methods import PrototypicalNetworks

        model = PrototypicalNetworks(easyfsl_conv4()).to(machine.backend().device).train()
        adam = torch.optim.Adam(model.parameters(), lr=1e-3)
        placed = machine.backend().place(episode)
        given = [placed.support.x[0], placed.support.y[0], placed.query.x[0], placed.query.y[0]]
        arms["easyfsl"] = machine.waiting(lambda: easyfsl_step(model, adam, given))
    timed(machine, report, "protonet", arms, here, 1 if quick else 20)


def timed(
    machine: Machine, report: Report, what: str, arms: dict[str, Callable[[], None]], here: str, rounds: int
) -> None:
    """Time arms in turn, and add their rows, peak memory, and ratios to that of kshot."""
    times = alternate(arms, rounds, warmup=1 if rounds == 1 else 3)
    for name, seconds in times.items():
        row(report, f"{what}: {name}", seconds, machine.peak(arms[name]) if name != "cpu" else "-")
    for name in times:
        if name != here:
            sentence = f"kshot on {here} is {{}} times as fast as {name} ({what})"
            report.ratios.append((ratio_of(times[name], times[here]), sentence))


def maml(machine: Machine, report: Report, quick: bool, absent: list[str]) -> None:
    """Time second-order meta-steps of MAML on 5-way 1-shot Omniglot, all libraries with the same tasks and network."""
    import kshot

    tasks = 2 if quick else 16
    here = f"{machine.name} in float32"
    work = maml_step.Work("omniglot", tasks, machine.backend())
    built = {here: maml_step.kshot_arm(work)}
    others = [name for name in OTHERS if name not in absent]
    built |= {name: maml_step.ARMS[name](work) for name in others}
    truth = maml_step.gradients(built["a loop of autograd"])
    for name, arm in built.items():
        error = float((maml_step.gradients(arm) - truth).norm() / truth.norm())
        report.notes.append(f"MAML: the meta-gradient of {name} differs from the loop's by {error:.1e}")
    arms = {name: machine.waiting(maml_step.steps_of(arm, 1)) for name, arm in built.items()}
    low = machine.backend("bfloat16")
    fast = maml_step.kshot_arm(maml_step.Work("omniglot", tasks, low))

    def cast() -> None:
        with low.autocast():
            fast[1]()

    arms[f"{machine.name} in bfloat16"] = machine.waiting(maml_step.steps_of((fast[0], cast), 1))
    if machine.name != "cpu":
        arms["cpu"] = maml_step.steps_of(
            maml_step.kshot_arm(maml_step.Work("omniglot", tasks, kshot.backend("cpu"))), 1
        )
    timed(machine, report, f"MAML, {tasks} tasks", arms, here, 1 if quick else 8)


def traced(machine: Machine, report: Report, quick: bool) -> None:
    """Time meta-steps of a small network, whose operations wait for their launches, and of a convolutional one."""
    import kshot

    shapes: list[tuple[str, dict[str, Any], int]] = [("sinusoid", {"shot": 10}, 25)]
    if not quick:
        shapes += [("omniglot", {"way": 5, "shot": 1, "query": 15}, 1), ("omniglot", {"way": 5, "shot": 1}, 16)]
    for name, options, count in shapes:
        tasks = kshot.tasks(name, **options)
        arms: dict[str, Callable[[], None]] = {}
        for strategy in ("traced", "vmap"):
            backend = machine.backend()
            learner = backend.place(kshot.learner("maml", tasks.spec, seed=0, strategy=strategy)).train()
            batch = backend.place(tasks.sample("train", range(count)))

            def step(learner: Any = learner, backend: Any = backend, batch: Any = batch) -> None:
                learner.zero_grad()
                with backend.autocast():
                    float(learner.meta_gradient(batch)["loss"])

            arms[strategy] = machine.waiting(step)
        timed(machine, report, f"MAML, {count} tasks of {name}", arms, "traced", 1 if quick else 20)


def sampling(machine: Machine, report: Report, quick: bool) -> None:
    """Time how fast episodes reach the device: gathered there from a table, and transferred from the host."""
    import kshot
    from kshot.devices import sample_on

    options: dict[str, dict[str, Any]] = {"cpu": {}}
    if machine.name != "cpu":
        options = {"gathered on the device": {}, "transferred": {"resident": False}}
    arms: dict[str, Callable[[], None]] = {}
    for name, own in options.items():
        tasks, backend = kshot.tasks("omniglot", way=5, shot=1, query=15), machine.backend(**own)
        count = iter(range(10**9))

        def sample(tasks: Any = tasks, backend: Any = backend, count: Any = count) -> None:
            start = 16 * next(count)
            sample_on(backend, tasks, "train", range(start, start + 16))

        arms[name] = machine.waiting(sample)
    for name, seconds in alternate(arms, 3 if quick else 100, warmup=1 if quick else 10).items():
        row(report, f"16 episodes sampled: {name}", seconds)


def throughput(machine: Machine, report: Report, quick: bool) -> None:
    """Report tasks per second of MAML and protonet by the number of tasks per step, sampling included."""
    import kshot

    for name in ("maml", "protonet"):
        tasks = kshot.tasks("omniglot", way=5, shot=1, query=15)
        for count in (1, 2) if quick else (1, 2, 4, 8, 16, 32, 64, 128, 256, 512):
            if not machine.has_time(f"{name} with {count} tasks"):
                return
            learner = kshot.learner(name, tasks.spec, seed=0)
            constant = {"name": "adam", "lr": 1e-3, "schedule": "constant"}
            backend = machine.backend()
            engine = kshot.Engine(learner, tasks, backend=backend, meta_batch=count, optimizer=constant, hooks=())
            steps = 1 if quick or count > 64 else 5

            def train(engine: Any = engine, steps: int = steps) -> None:
                engine.train(engine.iteration + steps)

            try:
                memory = machine.peak(train)
                seconds = alternate({"step": machine.waiting(train)}, 1 if quick else 3, each=steps)["step"]
            except machine.torch.OutOfMemoryError:
                report.notes.append(f"{name}: {count} tasks per step need more memory than there is")
                break
            row(report, f"{name}: a step on {count} tasks, with sampling", seconds, memory)
            report.notes.append(f"{name}: {count / spread(seconds)[0]:.0f} tasks per second with {count} per step")


if __name__ == "__main__":
    main()
