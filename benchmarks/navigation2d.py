"""Measure environment steps per second of 2-D navigation: 20 tasks x 20 trajectories x 100 steps, in one thread."""

from __future__ import annotations

import importlib.util
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
    kshot.Cpu()  # its malloc settings, as in training
    tasks = kshot.tasks("navigation2d", shot=TRAJECTORIES, query=TRAJECTORIES, horizon=HORIZON)
    episode = tasks.sample("train", range(TASKS))
    environment = episode.query.source
    still = torch.zeros(TASKS, TRAJECTORIES, 2)
    learner = kshot.learner("maml-rl", tasks.spec)  # 2 x 100, tanh
    with torch.no_grad():
        policies = learner.adapt(episode.support)

    alone, likely = "environments alone", "20 adapted policies, 2 x 100, most likely action"
    drawn, single = "20 adapted policies, 2 x 100, drawn actions", "gymnasium's SyncVectorEnv, no policy"
    runs: dict[str, Callable[[], object]] = {
        alone: lambda: environment.rollout(lambda x: still),
        likely: lambda: environment.rollout(policies.__call__),
        drawn: lambda: environment.rollout(policies),
    }
    played = dict.fromkeys(runs, HORIZON)
    if importlib.util.find_spec("gymnasium"):
        played[single] = 5  # it is slow
        runs[single] = gymnasium_environments(played[single])
    times = alternate(runs, 3 if options.quick else 25, warmup=1 if options.quick else 5)
    seconds = {name: [t / (TASKS * TRAJECTORIES * played[name]) for t in found] for name, found in times.items()}
    report = Report("navigation2d", [f"{TASKS} x {TRAJECTORIES} environments, {HORIZON} steps a rollout; float32"])
    for name, found in seconds.items():
        median, least, greatest = spread([1 / t for t in found])
        report.rows.append({"arm": name, "steps/s": median, "least": least, "greatest": greatest})
    if single in seconds:
        ratio = ratio_of(seconds[single], seconds[alone])
        report.ratios.append((ratio, "{} x the steps of gymnasium's SyncVectorEnv, without a policy"))
    report.ratios.append((ratio_of(seconds[drawn], seconds[alone]), "policies that draw take {} x the time of none"))
    report.finish(options)


if __name__ == "__main__":
    main()
