"""Measure environment steps per second of 2-D navigation: 20 tasks x 20 trajectories x 100 steps, in one thread.
Times are processor times, so that other programs disturb them little.

The 400 environments run without a policy, with adapted policies that take their most likely actions, and with adapted
policies that draw their actions. If gymnasium is installed, its ``SyncVectorEnv`` steps as many environments without a
policy, and one ratio is the steps per second of kshot over its. The last ratio is the time with policies that draw over
that without a policy.

Run ``python benchmarks/navigation2d.py`` (needs kshot-navigation2d and kshot-maml-rl); add ``--quick`` to test the
script only.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from typing import Any

import torch
from bench import Report, alternate, arguments, ratio_of, spread

import kshot

TASKS, TRAJECTORIES, HORIZON = 20, 20, 100


def gymnasium_environments(steps: int) -> Callable[[], object]:
    """Make the same 400 points as single gymnasium environments, which ``SyncVectorEnv`` steps one after another."""
    import gymnasium

    from kshot_navigation2d import gym

    gym.register()
    vector: Any = gymnasium.make_vec(gym.ID, TASKS * TRAJECTORIES, vectorization_mode="sync", horizon=HORIZON)
    actions = torch.zeros(TASKS * TRAJECTORIES, 2).numpy()

    def run() -> None:
        vector.reset()
        for _ in range(steps):
            vector.step(actions)

    return run


def main() -> None:
    options = arguments(__doc__)
    torch.set_num_threads(1)
    kshot.Cpu()  # makes the same malloc settings as in training
    tasks = kshot.tasks("navigation2d", shot=TRAJECTORIES, query=TRAJECTORIES, horizon=HORIZON)
    episode = tasks.sample("train", range(TASKS))
    environment = episode.query.source
    still = torch.zeros(TASKS, TRAJECTORIES, 2)
    learner = kshot.learner("maml-rl", tasks.spec)  # two hidden layers of 100 units with tanh
    with torch.no_grad():
        policies = learner.adapt(episode.support)

    alone, likely = "environments alone", "20 adapted policies, 2 x 100, most likely action"
    drawn, single = "20 adapted policies, 2 x 100, drawn actions", "gymnasium's SyncVectorEnv, no policy"
    runs: dict[str, Callable[[], object]] = {
        alone: lambda: environment.rollout(lambda x: still),
        likely: lambda: environment.rollout(policies.__call__),
        drawn: lambda: environment.rollout(policies),
    }
    steps_of = dict.fromkeys(runs, HORIZON)
    if importlib.util.find_spec("gymnasium"):
        steps_of[single] = 5  # fewer, because it is slow
        runs[single] = gymnasium_environments(steps_of[single])
    times = alternate(runs, 3 if options.quick else 25, warmup=1 if options.quick else 5, clock=time.process_time)
    seconds = {name: [t / (TASKS * TRAJECTORIES * steps_of[name]) for t in values] for name, values in times.items()}
    report = Report("navigation2d", [f"{TASKS} x {TRAJECTORIES} environments, {HORIZON} steps per rollout; float32"])
    for name, values in seconds.items():
        median, least, greatest = spread([1 / t for t in values])
        report.rows.append({"run": name, "steps/s": median, "least": least, "greatest": greatest})
    if single in seconds:
        ratio = ratio_of(seconds[single], seconds[alone])
        report.ratios.append((ratio, "kshot is {} times as fast as gymnasium's SyncVectorEnv (no policy)"))
    with_policies = ratio_of(seconds[drawn], seconds[alone])
    report.ratios.append((with_policies, "with policies that draw actions a rollout takes {} times as long as without"))
    report.finish(options)


if __name__ == "__main__":
    main()
