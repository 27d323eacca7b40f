"""``kshot_l2l.Optimizer``: the learner's own steps in a plain loop, exact resuming, and what is refused."""

from __future__ import annotations

import copy
import io
import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kshot
from kshot import Objective
from kshot.errors import DataError, MisfitError, OptionError, RunError, TrainingError
from kshot.testing import sample_learner, sample_tasks
from kshot_l2l import L2L, Optimizer

SPEC = sample_tasks.Quadratics().spec


def learner(**options: Any) -> L2L:
    made: L2L = kshot.learner("l2l", SPEC, seed=1, **{"hidden": 4, "output_scale": 1.0, **options})
    return made


def problem(P: int = 7) -> Objective:
    """Return one objective |W theta - y|^2."""
    generator = torch.Generator().manual_seed(0)
    initial, W, y = (torch.randn(1, *shape, generator=generator) for shape in ((P,), (P, P), (P,)))
    return Objective(initial, (W, y), lambda p, d: (d[0] @ p - d[1]).square().sum())


def steps_of(optimizer: Any, parameters: list[nn.Parameter], objective: Objective, steps: int) -> list[Tensor]:
    """Take steps by a torch optimizer and return the points [P]; the parameters are pieces of the point."""
    points = []
    for _ in range(steps):
        point = torch.cat([p.detach().flatten().float() for p in parameters])
        gradient = objective.loss_and_gradient(point[None])[1][0]
        for p, g in zip(parameters, gradient.split([p.numel() for p in parameters]), strict=True):
            p.grad = g.view_as(p).to(p.dtype)
        optimizer.step()
        points.append(torch.cat([p.detach().flatten() for p in parameters]))
    return points


def pieces(objective: Objective) -> list[nn.Parameter]:
    point = objective.initial[0]
    return [nn.Parameter(point[:6].reshape(2, 3).clone()), nn.Parameter(point[6:].clone())]


def test_its_steps_are_those_of_the_learner_to_the_bit():
    """Whatever the shapes of the parameters, a group is one point of the learner's objective."""
    l2l, objective = learner(), problem()
    parameters = pieces(objective)
    points = steps_of(Optimizer(parameters, learner=l2l), parameters, objective, 12)
    support = kshot.Support(torch.zeros(1, 0), torch.zeros(1, 0), source=objective)
    expected = l2l.adapt(support)(torch.arange(1.0, 13)[None])[0]
    assert torch.equal(torch.stack(points), expected)


def test_a_plain_loop_minimises_a_function():
    """Closures, gradients by autograd and a trained optimizer work together."""
    tasks = sample_tasks.Quadratics(steps=20)
    trained = kshot.learner("l2l", tasks.spec, seed=0, hidden=8, unroll=10)
    kshot.Engine(trained, tasks, meta_batch=8, hooks=()).train(40)
    weights = nn.Parameter(torch.ones(3))
    optimizer = Optimizer([weights], learner=trained)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (weights - 0.5).square().sum()
        loss.backward()
        return loss

    losses = [float(optimizer.step(closure).detach()) for _ in range(20)]
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_loaded_state_goes_on_exactly(dtype):
    """Three steps, a state on disk and four more steps are seven steps, also if parameters have another type."""
    objective = problem()
    parameters = [nn.Parameter(p.detach().to(dtype)) for p in pieces(objective)]
    optimizer = Optimizer(parameters, learner=learner())
    steps_of(optimizer, parameters, objective, 3)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    copies = [nn.Parameter(p.detach().clone()) for p in parameters]
    other = Optimizer(copies, learner=learner())
    other.load_state_dict(torch.load(file, weights_only=True))
    expected = steps_of(optimizer, parameters, objective, 4)
    got = steps_of(other, copies, objective, 4)
    assert all(map(torch.equal, got, expected))
    fresh = [nn.Parameter(p.detach().clone()) for p in pieces(objective)]
    assert not torch.equal(steps_of(Optimizer(fresh, learner=learner()), fresh, objective, 4)[-1], expected[-1])


def test_the_state_of_another_optimizer_is_refused():
    """The state of an LSTM means nothing to another one."""
    parameters = pieces(problem())
    state = Optimizer(parameters, learner=learner()).state_dict()
    other: L2L = kshot.learner("l2l", SPEC, seed=2, hidden=4, output_scale=1.0)
    with pytest.raises(OptionError, match=r"got the state of another learned optimizer, expected .* same run"):
        Optimizer(parameters, learner=other).load_state_dict(state)


def test_groups_have_their_own_factor_and_schedulers_change_it():
    """The updates of a group are multiplied by its ``lr``."""
    objective = problem()
    changes = {}
    for lr in (1.0, 0.5):
        parameters = pieces(objective)
        optimizer = Optimizer([{"params": parameters[:1], "lr": lr}, {"params": parameters[1:]}], learner=learner())
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)
        steps_of(optimizer, parameters, objective, 1)
        scheduler.step()
        changes[lr] = [p.detach() - q.detach() for p, q in zip(parameters, pieces(objective), strict=True)]
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1 * lr, 0.1])
    assert torch.allclose(changes[0.5][0], 0.5 * changes[1.0][0], rtol=1e-4)
    assert torch.equal(changes[0.5][1], changes[1.0][1])


def test_the_learner_and_the_settings_of_its_process_do_not_change():
    """The optimizer has a copy, takes no gradient, and can be copied itself."""
    l2l, objective = learner().train(), problem()
    before = copy.deepcopy(l2l.state_dict())
    parameters = pieces(objective)
    optimizer = Optimizer(parameters, learner=l2l)
    steps_of(optimizer, parameters, objective, 2)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), l2l.state_dict().values(), strict=True))
    assert all(p.requires_grad for p in l2l.parameters())
    twin = copy.deepcopy(optimizer)
    copies = twin.param_groups[0]["params"]
    got, expected = steps_of(twin, copies, objective, 2), steps_of(optimizer, parameters, objective, 2)
    assert all(map(torch.equal, got, expected))


def test_a_run_is_loaded_from_its_folder(tmp_path):
    """A run made in Python; ``kshot train`` calls the same code. Another version of torch is a warning."""
    tasks = kshot.register(sample_tasks.Quadratics, name="sample-quadratics", group="tasks")
    assert tasks is sample_tasks.Quadratics
    run = kshot.runs.train(
        {"name": "l2l", "hidden": 4, "unroll": 2},
        "sample-quadratics",
        iterations=2,
        evaluate={"episodes": 4},
        run=tmp_path / "run",
        quiet=True,
    )
    loaded = kshot.runs.load_learner(run.folder)
    assert (loaded.name, loaded.spec.kind, loaded.versions["torch"]) == ("l2l", "objective", str(torch.__version__))
    objective = problem()
    results = []
    for options in ({"run": run.folder}, {"learner": loaded.learner}):
        parameters = pieces(objective)
        results.append(steps_of(Optimizer(parameters, **options), parameters, objective, 3)[-1])
    assert torch.equal(*results)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["kshot"]["torch"] == str(torch.__version__)


def test_a_run_of_another_torch_warns(monkeypatch):
    """The same weights may take steps that differ by rounding."""
    old = kshot.runs.TrainedLearner(learner(), "l2l", SPEC, {"torch": "2.6.0"})
    monkeypatch.setattr("kshot_l2l.torch_optimizer.load_learner", lambda run, import_from: old)
    with pytest.warns(UserWarning, match=r"the run x was trained with torch 2\.6\.0, and this is "):
        Optimizer([nn.Parameter(torch.ones(2))], run="x")


def test_a_run_of_another_learner_or_none_is_refused(monkeypatch, tmp_path):
    """Only l2l learns an optimizer."""
    other = kshot.runs.TrainedLearner(sample_learner.NearestMean(sample_tasks.classification().spec), "nm", SPEC, {})
    monkeypatch.setattr("kshot_l2l.torch_optimizer.load_learner", lambda run, import_from: other)
    with pytest.raises(MisfitError, match=r"got a run of 'nm', expected one of 'l2l'; train one: kshot train l2l"):
        Optimizer([nn.Parameter(torch.ones(2))], run="x")
    monkeypatch.undo()
    with pytest.raises(RunError, match="nowhere"):
        Optimizer([nn.Parameter(torch.ones(2))], run=tmp_path / "nowhere")
    for wrong in ({}, {"run": "x", "learner": learner()}):
        with pytest.raises(OptionError, match="expected one of them"):
            Optimizer([nn.Parameter(torch.ones(2))], **wrong)


def test_parameters_without_gradients_are_refused():
    """When the optimizer is made, or in the step in which they have none."""
    with pytest.raises(OptionError, match=r"parameter 1 of group 0 .* requires_grad=False, expected .* leave it out"):
        Optimizer([nn.Parameter(torch.ones(2)), torch.ones(2)], learner=learner())
    with pytest.raises(OptionError, match=r"got lr 0\.0, expected a positive number"):
        Optimizer([nn.Parameter(torch.ones(2))], learner=learner(), lr=0.0)
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    optimizer = Optimizer([used, unused], learner=learner())
    used.sum().backward()
    with pytest.raises(TrainingError, match=r"got no gradient of parameter 1 of group 0 \(shape \[3\]\)"):
        optimizer.step()
    assert torch.equal(used.detach(), torch.ones(2))


def test_losses_that_are_vectors_are_refused():
    """By the closure, and by an objective of the learner itself."""
    weights = nn.Parameter(torch.ones(2))

    def closure() -> Tensor:
        weights.square().sum().backward()
        return weights.square()

    with pytest.raises(TrainingError, match=r"got a loss of shape \[2\] from the closure, expected a scalar"):
        Optimizer([weights], learner=learner()).step(closure)
    vector = Objective(torch.ones(1, 2), (), lambda point, data: point.square())
    support = kshot.Support(torch.zeros(1, 0), torch.zeros(1, 0), source=vector)
    with pytest.raises(DataError, match=r"got a loss of shape \[2\].*expected a scalar"):
        learner().adapt(support)(torch.ones(1, 1))
