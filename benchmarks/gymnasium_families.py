"""Measure environment steps per second of gymnasium families against ``SyncVectorEnv`` stepped by hand, in one thread.
Times are processor times, so that other programs disturb them little.

10 tasks x 10 trajectories. By hand, a loop sets the parameters, resets by seeds and steps a ``SyncVectorEnv`` of the
same environments with the same actions, and keeps observations and rewards. The tasks ``cartpole`` and ``pendulum``
have vectorised environments; ``gymnasium`` steps a ``SyncVectorEnv`` too, so its ratio is the cost of the adapter.

Run ``python benchmarks/gymnasium_families.py`` (needs kshot-gymnasium); add ``--quick`` to test the script only.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch
from bench import Report, alternate, arguments, ratio_of, spread

import kshot

TASKS, TRAJECTORIES, HORIZON = 10, 10, 50

FAMILIES: dict[str, tuple[str, dict[str, Any], str, str]] = {
    # name: (tasks, their options, the environment of gymnasium, its attribute that differs by task)
    "cartpole": ("cartpole", {}, "CartPole-v1", "force_mag"),
    "pendulum": ("pendulum", {}, "Pendulum-v1", "m"),
    "gymnasium": ("gymnasium", {"environment": "Pendulum-v1", "parameter": "m"}, "Pendulum-v1", "m"),
}


def by_hand(id: str, attribute: str) -> Callable[[], object]:
    """Return the function that plays one rollout of all environments by hand."""
    n = TASKS * TRAJECTORIES
    vector: Any = gymnasium.make_vec(id, n, vectorization_mode="sync", vector_kwargs={}, disable_env_checker=True)
    discrete = isinstance(vector.single_action_space, gymnasium.spaces.Discrete)
    action = np.zeros(n, np.int64) if discrete else np.zeros((n, 1), np.float32)
    values, seeds = np.linspace(5.0, 15.0, n).tolist(), list(range(n))

    def run() -> object:
        vector.set_attr(attribute, values)
        seen, _ = vector.reset(seed=seeds)
        kept = []
        for _ in range(HORIZON):
            kept.append(seen)
            seen, reward, *_ = vector.step(action)
            kept.append(reward)
        return kept

    return run


def main() -> None:
    options = arguments(__doc__)
    torch.set_num_threads(1)
    kshot.Cpu()  # makes the same malloc settings as in training
    report = Report("gymnasium_families", [f"{TASKS} x {TRAJECTORIES} environments, {HORIZON} steps per rollout"])
    for name, (tasks_name, given, id, attribute) in FAMILIES.items():
        tasks = kshot.tasks(tasks_name, shot=TRAJECTORIES, query=TRAJECTORIES, horizon=HORIZON, **given)
        environment = tasks.sample("train", range(TASKS)).query.source
        lead = (TASKS, TRAJECTORIES)
        still = torch.zeros(lead, dtype=torch.int64) if tasks.spec.way else torch.zeros(*lead, *tasks.spec.target_shape)

        def ours(environment: Any = environment, still: torch.Tensor = still) -> object:
            return environment.rollout(lambda x: still)

        runs: dict[str, Callable[[], object]] = {"kshot": ours, "by hand": by_hand(id, attribute)}
        times = alternate(runs, 3 if options.quick else 15, warmup=1 if options.quick else 3, clock=time.process_time)
        for run, values in times.items():
            median, least, greatest = spread([TASKS * TRAJECTORIES * HORIZON / t for t in values])
            report.rows.append({"run": f"{name}, {run}", "steps/s": median, "least": least, "greatest": greatest})
        ratio = ratio_of(times["by hand"], times["kshot"])
        report.ratios.append((ratio, f"{name} is {{}} times as fast as SyncVectorEnv stepped by hand"))
    report.finish(options)


if __name__ == "__main__":
    main()
