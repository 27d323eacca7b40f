"""kshot: learning from a handful of examples, as a core and plugins.

    tasks = kshot.tasks("omniglot", way=5, shot=1, query=15)
    learner = kshot.learner("protonet", tasks.spec)
    engine = kshot.Engine(learner, tasks)
    engine.train(iterations=2000)
    print(engine.evaluate(episodes=600))

Importing this imports neither torch nor any plugin; names are fetched on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from kshot._distributions import BeforeTorch

if TYPE_CHECKING:
    from kshot import control, episode, errors, functional, inner, kinds, nn, randomness, runs, sampling, testing
    from kshot._engine.attack import Attack
    from kshot._engine.cpu import Cpu
    from kshot._engine.engine import Engine
    from kshot._engine.hook_specs import hookimpl
    from kshot._engine.optimizer import Outer
    from kshot._engine.result import Result
    from kshot.checks import check
    from kshot.episode import Episode, Examples, Objective, Origin, Predictor, Rollout, Support
    from kshot.inner.lifting import Lift, per_episode
    from kshot.protocols import (
        Backend,
        Learner,
        LearnerFactory,
        Memory,
        MemoryFactory,
        Metrics,
        TaskDistribution,
        World,
    )
    from kshot.randomness import generator
    from kshot.registry import backend, encoder, hook, info, learner, memory, plugins, register, tasks
    from kshot.runs.trained import Trained
    from kshot.sampling import ClassificationTasks, Pool
    from kshot.spec import Needs, TaskSpec, Training

_WHERE = {
    "kshot._engine.attack": ("Attack",),
    "kshot._engine.cpu": ("Cpu",),
    "kshot._engine.engine": ("Engine",),
    "kshot.episode": ("Episode", "Examples", "Objective", "Origin", "Predictor", "Rollout", "Support"),
    "kshot.checks": ("check",),
    "kshot._engine.hook_specs": ("hookimpl",),
    "kshot.inner.lifting": ("Lift", "per_episode"),
    "kshot._engine.optimizer": ("Outer",),
    "kshot.protocols": (
        "Backend",
        "Learner",
        "LearnerFactory",
        "Memory",
        "MemoryFactory",
        "Metrics",
        "TaskDistribution",
        "World",
    ),
    "kshot.randomness": ("generator",),
    "kshot.registry": ("backend", "encoder", "hook", "info", "learner", "memory", "plugins", "register", "tasks"),
    "kshot._engine.result": ("Result",),
    "kshot.sampling": ("ClassificationTasks", "Pool"),
    "kshot.spec": ("Needs", "TaskSpec", "Training"),
    "kshot.runs.trained": ("Trained",),
}
_MODULES = (
    "control",
    "episode",
    "errors",
    "functional",
    "inner",
    "kinds",
    "nn",
    "randomness",
    "runs",
    "sampling",
    "testing",
)
_MODULE_OF = {name: module for module, names in _WHERE.items() for name in names}

__all__ = [
    "Attack",
    "Backend",
    "ClassificationTasks",
    "Cpu",
    "Engine",
    "Episode",
    "Examples",
    "Learner",
    "LearnerFactory",
    "Lift",
    "Memory",
    "MemoryFactory",
    "Metrics",
    "Needs",
    "Objective",
    "Origin",
    "Outer",
    "Pool",
    "Predictor",
    "Result",
    "Rollout",
    "Support",
    "TaskDistribution",
    "TaskSpec",
    "Trained",
    "Training",
    "World",
    "backend",
    "check",
    "control",
    "encoder",
    "episode",
    "errors",
    "functional",
    "generator",
    "hook",
    "hookimpl",
    "info",
    "inner",
    "kinds",
    "learner",
    "memory",
    "nn",
    "per_episode",
    "plugins",
    "randomness",
    "register",
    "runs",
    "sampling",
    "tasks",
    "testing",
]


BeforeTorch.install()


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("kshot")
    if name in _MODULES:
        return importlib.import_module(f"kshot.{name}")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'kshot' has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
