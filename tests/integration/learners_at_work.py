"""Train every installed learner in this process; test_distributed_learners.py compares the results between processes.

Started by torchrun as ``learners_at_work.py FOLDER``, each process saves its results in FOLDER/RANK.pt.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

import kshot._engine.door

Case = tuple[str, dict[str, Any], str, dict[str, Any]]
"""The name of a learner and its options, and the name of tasks and their options."""

CASES: dict[str, Case] = {
    "protonet": ("protonet", {}, "toy", {}),
    "simpleshot": ("simpleshot", {}, "toy", {}),
    "simclr": ("simclr", {}, "toy", {}),
    "autoencoder": ("autoencoder", {"corruption": 0.2}, "toy", {}),
    "fine-tune": ("fine-tune", {"steps": 2}, "toy", {"shot": 2}),
    "maml": ("maml", {}, "sinusoid", {}),
    "first-order maml": ("maml", {"order": "first", "inner_steps": 3}, "toy", {"shot": 5}),
    "mamlpp": ("mamlpp", {"inner_steps": 3, "loss_iterations": 12, "first_order_iterations": 6}, "sinusoid", {}),
    "imaml": ("imaml", {"inner_steps": 4}, "sinusoid", {}),
    "anil": ("anil", {"inner_steps": 2}, "sinusoid", {}),
    "boil": ("boil", {"inner_steps": 2}, "toy", {"shot": 5}),
    "protomaml": ("protomaml", {"inner_steps": 2}, "toy", {"shot": 5}),
    "metasgd": ("metasgd", {}, "sinusoid", {}),
    "meta-lstm": ("meta-lstm", {"lstm": 4, "inner_steps": 2}, "sinusoid", {}),
    "cavia": ("cavia", {}, "sinusoid", {}),
    "first-order cavia": ("cavia", {"order": "first", "inner_steps": 3}, "toy", {"shot": 5}),
    "reptile": ("reptile", {"test_steps": 5}, "sinusoid", {}),
    "gradient-agreement of maml": ("gradient-agreement", {"inner": "maml"}, "sinusoid", {}),
    "gradient-agreement of reptile": ("gradient-agreement", {"inner": {"name": "reptile"}}, "sinusoid", {}),
    "concept of maml": ("concept", {"meta": "maml"}, "with-external", {"of": "toy", "source": "toy"}),
    "concept of reptile": ("concept", {"meta": {"name": "reptile"}}, "with-external", {"of": "toy", "source": "toy"}),
    "taml": ("taml", {"inner_steps": 2}, "sinusoid", {}),
    "taml by entropy": ("taml", {"measure": "entropy"}, "toy", {}),
    "adml": ("adml", {"attack": "pgd", "steps": 2}, "toy", {}),
    "semi-protonet": ("semi-protonet", {"refine": "masked"}, "semi-supervised", {"of": "toy", "labelled": 0.5}),
    "mann": ("mann", {"hidden": 30}, "stream", {"of": "toy", "instances": 4}),
    "ntm": ("ntm", {}, "copy", {"length": (1, 5), "block": 30}),
    "lstm": ("lstm", {"hidden": 30}, "stream", {"of": "toy", "instances": 4}),
    "l2l": ("l2l", {"unroll": 4}, "quadratics", {"steps": 12}),
    "mil": ("mil", {"two_heads": True, "bias": 4}, "reach2d", {"horizon": 8}),
    "mil, observations": ("mil", {"demonstrations": "observations"}, "reach2d", {"horizon": 8}),
    "maml-rl": ("maml-rl", {"hidden": (20,)}, "bandits", {}),
    "metasgd-rl": ("metasgd-rl", {"hidden": (20,)}, "bandits", {}),
    "maml-rl, one step": ("maml-rl", {"hidden": (20,), "outer": "reinforce"}, "navigation2d", {"horizon": 20}),
}
META_BATCHES = (5, 1)
"""A number of tasks that two ranks can't share evenly, and fewer tasks than ranks."""

ITERATIONS = 20


def installed(case: Case) -> bool:
    """Return whether all plugins that a case names are installed."""
    names = {plugin.name for plugin in kshot.plugins() if plugin.state == "ok"}
    learner, options, tasks, task_options = case
    nested = [*options.values(), *task_options.values()]
    inner = [v["name"] if isinstance(v, dict) else v for v in nested if isinstance(v, str | dict)]
    return {learner, tasks, *(name for name in inner if name in ("maml", "reptile", "toy"))} <= names


class InFloat64:
    """Represent a view that converts the tasks below to float64."""

    def __init__(self, of: Any) -> None:
        self.of, self.spec = of, of.spec

    def sample(self, split: str, indices: Any) -> kshot.Episode:
        episode = self.of.sample(split, indices)
        return kshot.episode.map_tensors(lambda t: t.double() if t.is_floating_point() else t, episode)


def train(name: str, meta_batch: int, double: bool, backend: Any) -> dict[str, Any]:
    """Train one case; return the parameters before and after, and the last metrics.

    In float32 the optimizer takes plain gradient steps: where the true gradient is zero, an adaptive optimizer would
    turn a rounding error into a step of full length. In float64 it is the learner's default optimizer.
    """
    learner_name, learner_options, tasks_name, task_options = CASES[name]
    tasks = kshot.tasks(tasks_name, **task_options)
    learner = kshot.learner(learner_name, tasks.spec, seed=1, **learner_options)
    optimizer: Any = {"name": "sgd", "lr": 0.01}
    if double:
        tasks, learner, optimizer = InFloat64(tasks), learner.double(), None
    before = {n: t.clone() for n, t in learner.state_dict().items()}
    engine = kshot.Engine(learner, tasks, backend=backend, meta_batch=meta_batch, optimizer=optimizer)
    metrics = dict(engine.train(ITERATIONS))
    return {"before": before, "after": dict(learner.state_dict()), "metrics": metrics}


def train_all(backend: Any) -> dict[str, Any]:
    """Train all installed cases; the keys are the name, the meta-batch and whether it is in float64."""
    torch.set_num_threads(1)
    kshot._engine.door.check_episode = lambda *_: None  # the check of episodes accepts float32 only
    names = [name for name, case in CASES.items() if installed(case)]
    return {
        f"{name}, {meta_batch}, {double}": train(name, meta_batch, double, backend)
        for name in names
        for meta_batch in META_BATCHES
        for double in (False, True)
    }


if __name__ == "__main__":
    backend = kshot.backend("distributed")
    torch.save(train_all(backend), Path(sys.argv[1]) / f"{backend.world.rank}.pt")
