"""Train and use every installed learner on a device that stands in for a GPU; test_devices_at_work.py reads the result.

Started as ``learners_on_a_device.py FOLDER``, in a process of its own; prints one JSON object: for each case what is
wrong, or an empty text.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from learners_at_work import CASES, installed

import kshot
from kshot.testing import sample_learner, sample_tasks
from kshot.testing.stand_in import NAME, StandIn, standing_in

MORE: dict[str, Any] = {
    "siamese": ("siamese", {}, "toy", {}),
    "matchingnet": ("matchingnet", {"full_context": True}, "toy", {}),
    "gaussian-protonet": ("gaussian-protonet", {}, "toy", {}),
    "relationnet": ("relationnet", {"width": 8}, "omniglot", {"way": 3, "query": 2}),
    "linear-probe": ("linear-probe", {}, "toy", {"shot": 2}),
    "tim": ("tim", {"steps": 5}, "toy", {}),
    "tim in closed form": ("tim", {"method": "adm"}, "toy", {}),
    "protonet on images": ("protonet", {"width": 8}, "omniglot", {"way": 3, "query": 2}),
    "maml on images": ("maml", {"width": 8}, "omniglot", {"way": 2, "query": 1}),
    "tuned-optimizer": ("tuned-optimizer", {}, "quadratics", {"steps": 12}),
}


def trained(case: Any, backend: Any) -> tuple[Any, float]:
    """Return the parameters after two iterations, with chunks and validation, and the score of a test."""
    name, options, tasks_name, task_options = case
    tasks = kshot.tasks(tasks_name, **task_options)
    learner = kshot.learner(name, tasks.spec, seed=1, **options)
    chunk = None if learner.needs.couples_tasks else 2
    sgd: Any = {"name": "sgd", "lr": 0.01}
    engine = kshot.Engine(learner, tasks, backend=backend, meta_batch=3, chunk=chunk, seed=0, optimizer=sgd)
    validation: Any = {"validate_every": 1, "validation_episodes": 2} if "val" in tasks.spec.splits else {}
    engine.train(2, **validation)
    return learner.state_dict(), engine.evaluate(2).mean


def compared(case: Any) -> str:
    """Return how a training on the device differs from one on the CPU: in nothing but the rounding of its LSTM."""
    state, score = trained(case, StandIn())
    expected, expected_score = trained(case, kshot.Cpu(precision="float32", memory_format="contiguous"))
    if elsewhere := [name for name, t in state.items() if t.device.type != NAME]:
        return f"not on the device: {elsewhere}"
    far = [n for n, t in state.items() if not torch.allclose(t.cpu(), expected[n], rtol=1e-4, atol=1e-6)]
    return f"differ: {far}, {score} for {expected_score}" if far or abs(score - expected_score) > 1e-3 else ""


def used(folder: Path) -> str:
    """Train with a run folder, resume it from its checkpoint, and predict with it, on the device."""
    tasks = sample_tasks.classification()
    learner = lambda: kshot.learner("sample-learner", tasks.spec, seed=0)  # noqa: E731
    run: Any = {"run": folder / "run", "backend": StandIn(), "seed": 0}
    kshot.Engine(learner(), tasks, **run).train(4, validate_every=2, validation_episodes=5, checkpoint_every=2)
    again = kshot.Engine(learner(), tasks, **run)
    if again.resume() != 4:
        return "not resumed"
    again.train(6, validate_every=2, validation_episodes=5)
    on_cpu = kshot.Engine(learner(), tasks, backend=kshot.Cpu(precision="float32"), seed=0)
    on_cpu.train(6, validate_every=2, validation_episodes=5)
    far = {n: bool(torch.equal(t.cpu(), on_cpu.learner.state_dict()[n])) for n, t in again.learner.state_dict().items()}
    if not all(far.values()):
        return f"differ after resuming: {far}"
    model = kshot.Trained(again.learner, tasks.spec, backend=StandIn(), tasks=tasks)
    support = {"low": torch.zeros(2, 6), "high": torch.ones(2, 6)}
    return "" if model.predict(support, torch.ones(1, 6)).labels == ["high"] else "predicts the wrong class"


def verified() -> str:
    """Embed and choose a threshold on the device, as on the CPU."""
    tasks = kshot.tasks("toy")
    thresholds = []
    for backend in (StandIn(), kshot.Cpu(precision="float32", memory_format="contiguous")):
        model = kshot.Trained(kshot.learner("protonet", tasks.spec, seed=0), tasks.spec, backend=backend, tasks=tasks)
        if type(model.embed(tasks.sample("test", [0]).query.x[0])).__name__ != "ndarray":
            return "no array"
        thresholds.append(model.threshold(episodes=2).value)
    return "" if abs(thresholds[0] - thresholds[1]) < 1e-4 else f"other thresholds: {thresholds}"


def refuses() -> str:
    """Return an empty text if the device refuses what a GPU refuses: else the other cases prove nothing."""
    x = torch.ones(2, device=NAME)
    for wrong in (lambda: x + torch.ones(2), lambda: torch.cat([x, torch.zeros(0)]), lambda: x.numpy()):
        try:
            wrong()
        except (RuntimeError, TypeError):
            continue
        return "accepted tensors on two devices"
    return "" if float((x + torch.tensor(1.0)).sum()) == 4 else "refused a single number"


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    kshot.register(sample_learner.NearestMean, name="sample-learner")
    names = {plugin.name for plugin in kshot.plugins() if plugin.state == "ok"}
    known = {name: case for name, case in CASES.items() if installed(case)}
    known |= {name: case for name, case in MORE.items() if {case[0], case[2]} <= names}
    wrong: dict[str, str] = {}
    with standing_in():
        wrong["what a GPU refuses"], wrong["a run"] = refuses(), used(Path(sys.argv[1]))
        if {"protonet", "toy"} <= names:
            wrong["verification"] = verified()
        for name, case in known.items():
            try:
                wrong[name] = compared(case)
            except Exception as error:
                wrong[name] = f"{type(error).__name__}: {error}"
    print(json.dumps(wrong))


if __name__ == "__main__":
    main()
