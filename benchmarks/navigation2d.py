"""Environment steps a second of 2-D navigation: 20 tasks x 20 trajectories x 100 steps, one process, one thread."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from bench import Report, alternate, arguments, ratio_of, spread

import kshot

TASKS, TRAJECTORIES, HORIZON = 20, 20, 100


def gymnasium_environments() -> Callable[[], object]:
    """The same 400 points as single gymnasium environments, stepped one after another by ``SyncVectorEnv``."""
    import gymnasium

    from kshot_navigation2d import gym

    gym.register()
    vector: Any = gymnasium.make_vec(gym.ID, TASKS * TRAJECTORIES, vectorization_mode="sync", horizon=HORIZON)
    actions = torch.zeros(TASKS * TRAJECTORIES, 2).numpy()

    def run() -> None:
        vector.reset()
        for _ in range(HORIZON):
            vector.step(actions)

    return run


def main() -> None:
    options = arguments(__doc__)
    torch.set_num_threads(1)
    kshot.Cpu()  # its malloc settings, as in training
    tasks = kshot.tasks("navigation2d", shot=TRAJECTORIES, query=TRAJECTORIES, horizon=HORIZON)
    environment = tasks.sample("train", range(TASKS)).query.source
    support = tasks.sample("train", range(TASKS)).support
    still = torch.zeros(TASKS, TRAJECTORIES, 2)
    learner = kshot.learner("maml-rl", tasks.spec)  # 2 x 100, tanh
    with torch.no_grad():
        policies = learner.adapt(support)

    runs: dict[str, Callable[[], object]] = {
        "environments alone": lambda: environment.rollout(lambda x: still),
        "20 adapted policies, 2 x 100, most likely action": lambda: environment.rollout(policies.__call__),
        "20 adapted policies, 2 x 100, drawn actions": lambda: environment.rollout(policies),
    }
    if importlib.util.find_spec("gymnasium"):
        runs["gymnasium's SyncVectorEnv, no policy"] = gymnasium_environments()
    steps = TASKS * TRAJECTORIES * HORIZON
    times = alternate(runs, 3 if options.quick else 25, warmup=1 if options.quick else 5)
    report = Report("navigation2d", [f"{steps} steps a rollout of {TASKS * TRAJECTORIES} environments; float32"])
    for name, found in times.items():
        median, least, greatest = spread([steps / t for t in found])
        row = {"arm": name, "steps/s": float(median), "least": float(least), "greatest": float(greatest)}
        report.rows.append(row)
    alone, drawn = times["environments alone"], times["20 adapted policies, 2 x 100, drawn actions"]
    if "gymnasium's SyncVectorEnv, no policy" in times:
        single = times["gymnasium's SyncVectorEnv, no policy"]
        report.ratios.append((ratio_of(single, alone), "{} x the steps of gymnasium's SyncVectorEnv, without a policy"))
    report.ratios.append((ratio_of(drawn, alone), "{} x the time with policies that draw, of that without a policy"))
    report.finish(options)


if __name__ == "__main__":
    main()
