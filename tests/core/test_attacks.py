"""Adversarial inputs by hand, attacks of learners by ``Engine.evaluate``, and attacks in runs and commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from torch import Tensor, nn

import kshot
from kshot import Attack, Engine, Episode, Needs, Support
from kshot.cli import main
from kshot.errors import MisfitError, OptionError, RunError
from kshot.functional import fgsm, pgd
from kshot.randomness import uniform_as
from kshot.testing import sample_learner, sample_tasks

TASKS = sample_tasks.classification()
FLOAT32 = {"backend": kshot.Cpu(precision="float32"), "hooks": ()}


def engine(learner: Any = None, tasks: Any = TASKS) -> Engine:
    if learner is None:
        torch.manual_seed(0)
        learner = sample_learner.NearestMean(tasks.spec)
    return Engine(learner, tasks, **FLOAT32)


# --- The mathematics ------------------------------------------------------------------------------


def slope(x: Tensor) -> Tensor:
    """Return the gradient of a loss that grows to both sides of 1."""
    return 2 * (x - 1)


def test_fgsm_changes_every_number_by_epsilon_unless_it_does_not_matter() -> None:
    """By hand: up on the right of 1, down on its left, not at 1; and not beyond the range."""
    x = torch.tensor([0.0, 0.9, 1.0, 1.5, 1.95])
    assert fgsm(slope, x, epsilon=0.25).tolist() == pytest.approx([-0.25, 0.65, 1.0, 1.75, 2.2])
    assert fgsm(slope, x, epsilon=0.25, input_range=(0, 2)).tolist() == pytest.approx([0.0, 0.65, 1.0, 1.75, 2.0])
    assert torch.equal(fgsm(slope, x, epsilon=0.0), x)


def test_pgd_steps_back_into_the_bound() -> None:
    """By hand: three steps of 0.2 within 0.3; the gradient is that of the present inputs, not of the first ones."""
    x, start = torch.tensor([1.1, 1.1, 0.0]), torch.tensor([0.0, -0.15, -9.0])
    bent = {"epsilon": 0.3, "step_size": 0.2, "input_range": (-0.1, 1.35)}
    assert pgd(slope, x, steps=0, start=start, **bent).tolist() == pytest.approx([1.1, 0.95, -0.1])
    assert pgd(slope, x, steps=1, start=start, **bent).tolist() == pytest.approx([1.3, 0.8, -0.1])  # 0.75 is too far
    assert pgd(slope, x, steps=3, start=start, **bent).tolist() == pytest.approx([1.35, 0.8, -0.1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_number_changes_by_more_than_epsilon(dtype: torch.dtype) -> None:
    """The bound is in the maximum norm, up to the rounding of one addition."""
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=dtype)
    allowed = 0.1 + torch.finfo(dtype).eps * float(x.abs().max())
    for result in (
        fgsm(torch.cos, x, epsilon=0.1),
        pgd(torch.cos, x, epsilon=0.1, steps=9, step_size=0.07, start=0.1 * torch.ones_like(x)),
    ):
        assert float((result - x).abs().max()) <= allowed


def test_a_change_has_no_graph_and_runs_under_vmap() -> None:
    """The outer loop of a learner takes it as a constant; each task of a meta-batch has its own."""
    weight = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))

    def attack(w: Tensor, x: Tensor) -> Tensor:
        return fgsm(torch.func.grad(lambda x: (w * x).sum()), x, epsilon=0.5)

    together = torch.func.vmap(attack)(weight, x)
    assert not together.requires_grad
    assert torch.equal(together, x + 0.5 * weight.detach().sign())


def test_draws_for_a_start_are_those_of_the_episode() -> None:
    """They are uniform in [-1, 1), and the same alone and among others."""
    keys = TASKS.sample("test", range(3)).support.key
    draws = uniform_as(torch.zeros(3, 500, 4), keys, "test")
    assert draws.dtype == torch.float32
    assert -1 <= float(draws.min()) < -0.99
    assert 0.99 < float(draws.max()) <= 1
    assert abs(float(draws.mean())) < 0.05
    assert torch.equal(uniform_as(torch.zeros(1, 500, 4), keys[1:2], "test")[0], draws[1])
    assert not torch.equal(uniform_as(torch.zeros(3, 500, 4), keys, "other"), draws)


# --- Evaluation -----------------------------------------------------------------------------------


def naive(learner: Any, episode: Episode, on: str, epsilon: float) -> float:
    """Compute the accuracy of one episode under FGSM, by autograd alone."""

    def attacked(predict: Any, x: Tensor, y: Tensor) -> Tensor:
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(predict(leaf)[0], y[0]), leaf)
        return x + epsilon * gradient.sign()

    support, query = episode.support, episode.query
    if on in ("support", "both"):
        x = attacked(learner.adapt(support), support.x, support.y)
        support = attrs.evolve(support, x=x)
    predict = learner.adapt(support)
    x = attacked(predict, query.x, query.y) if on in ("query", "both") else query.x
    return float((predict(x)[0].argmax(-1) == query.y[0]).double().mean())


@pytest.mark.parametrize("on", ["support", "query", "both"])
def test_an_attack_is_on_what_is_asked_for(on: str) -> None:
    """The accuracy of each episode is that of a naive implementation; all three differ from each other."""
    used = engine()
    result = used.evaluate(8, attack={"epsilon": 0.4, "on": on})
    expected = [naive(used.learner, TASKS.sample("test", [i]), on, 0.4) for i in range(8)]
    assert result.scores["accuracy"].tolist() == pytest.approx(expected)
    assert result.mean < used.evaluate(8).mean
    assert result.perturbed == (on != "support")
    assert result.attack == {"name": "fgsm", "epsilon": 0.4, "on": on}
    assert f"fgsm 0.4 on {on.replace('both', 'support and query')}" in str(result)


def test_an_attack_of_size_0_changes_nothing() -> None:
    """Neither do batches of another size change an attack, random starts included."""
    used = engine()
    clean = used.evaluate(6)
    for name in ("fgsm", "pgd"):
        none = used.evaluate(6, attack={"name": name, "epsilon": 0.0, "on": "both"})
        assert none.scores["nll"].tolist() == pytest.approx(clean.scores["nll"].tolist())
    pgd_attack = {"name": "pgd", "epsilon": 0.3, "on": "both", "steps": 3}
    alone, together = (used.evaluate(6, attack=pgd_attack, batch=batch) for batch in (1, 6))
    assert alone.scores["nll"].tolist() == pytest.approx(together.scores["nll"].tolist(), rel=1e-4)
    fixed = used.evaluate(6, attack={**pgd_attack, "random_start": False})
    assert fixed.scores["nll"].tolist() != pytest.approx(together.scores["nll"].tolist(), rel=1e-4)


def test_a_stronger_attack_does_more() -> None:
    """A larger bound raises the loss, and many steps are no weaker than one; the parameters stay."""
    used = engine()
    before = [p.clone() for p in used.learner.parameters()]
    losses = [
        used.evaluate(20, attack=attack).scores["nll"].mean()
        for attack in (None, {"epsilon": 0.1}, {"epsilon": 0.3}, {"name": "pgd", "epsilon": 0.3, "steps": 20})
    ]
    assert losses[:3] == sorted(losses[:3])
    assert losses[3] > 0.9 * losses[2]
    assert all(torch.equal(a, b) for a, b in zip(before, used.learner.parameters(), strict=True))
    assert all(p.grad is None for p in used.learner.parameters())


def test_inputs_stay_in_the_range_of_the_tasks() -> None:
    """A spec with a range clips; the learner never sees an input outside."""
    images = sample_tasks.classification(input_shape=(1, 4, 4))

    class Limited:
        spec = attrs.evolve(images.spec, input_range=(-1.0, 1.0))
        seed = 0

        def sample(self, split: str, indices: Any) -> Episode:
            episode = images.sample(split, indices)
            parts = [attrs.evolve(p, x=p.x.clamp(-1, 1)) for p in (episode.support, episode.query)]
            return attrs.evolve(episode, support=parts[0], query=parts[1])

    seen: list[float] = []

    class Watching(sample_learner.NearestMean):
        def logits(self, support: Support, x: Tensor) -> Tensor:
            seen.extend([float(support.x.detach().abs().max()), float(x.detach().abs().max())])
            return super().logits(support, x)

    tasks = Limited()
    engine(Watching(tasks.spec), tasks).evaluate(3, attack={"epsilon": 5.0, "on": "both"})
    assert max(seen) == 1.0


class Mean(nn.Module):
    """Classify by the class mean of raw inputs, which are centred by the support and the queries."""

    needs = Needs(kinds=("classification",), queries="at_adapt", variable_way=True)

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def meta_gradient(self, episodes: Episode) -> dict[str, Tensor]:
        return {"loss": torch.zeros(())}

    def adapt(self, support: Support) -> Any:
        assert support.query_x is not None
        self.seen.append(support.query_x.detach())
        centre = support.query_x.detach().mean(1, keepdim=True)
        means = torch.stack([(support.x - centre)[:, support.y[0] == c].mean(1) for c in range(support.way or 0)], 1)
        return lambda x: -torch.cdist(x - centre, means)


def test_a_learner_that_adapts_to_queries_adapts_to_the_attacked_ones() -> None:
    """Otherwise it would know the clean queries, which an attacker does not show."""
    learner = Mean()
    engine(learner).evaluate(1, batch=1, attack={"epsilon": 0.5})
    assert float((learner.seen[-1] - TASKS.sample("test", [0]).query.x).abs().max()) == pytest.approx(0.5, abs=1e-6)


class Blind(sample_learner.NearestMean):
    """Predict under no_grad, as a learner of another library would."""

    def logits(self, support: Support, x: Tensor) -> Tensor:
        with torch.no_grad():
            return super().logits(support, x)


class Deaf(sample_learner.NearestMean):
    """Predict without looking at the inputs."""

    def logits(self, support: Support, x: Tensor) -> Tensor:
        return super().logits(support, torch.zeros_like(x))


@pytest.mark.parametrize("learner", [Blind, Deaf])
def test_a_predictor_without_a_derivative_is_refused(learner: type[nn.Module]) -> None:
    """An attack that changes nothing would look like robustness."""
    with pytest.raises(MisfitError, match="have no derivative by the inputs, expected a differentiable"):
        engine(learner(TASKS.spec)).evaluate(2, attack={"epsilon": 0.1})


def test_bad_attacks_are_refused() -> None:
    """The message lists what is wrong, with all fields; wrong tasks are refused too."""
    used = engine()
    for attack, message in (
        ("fgsm", "epsilon: got nothing, expected float"),
        ({"epsilon": -1.0}, r"epsilon: got -1.0, expected float of at least 0|epsilon: got -1"),
        ({"epsilon": 0.1, "on": "labels"}, "on: got 'labels', expected one of 'query', 'support', 'both'"),
        ({"epsilon": 0.1, "step": 3}, "step: unknown option; did you mean 'steps'"),
        ({"epsilon": 0.1, "steps": 3}, "got steps for fgsm, which takes one step"),
    ):
        with pytest.raises(OptionError, match=message):
            used.evaluate(2, attack=attack)
    lines = sample_tasks.Lines()
    attack = Attack(epsilon=0.1, on="support")
    with pytest.raises(MisfitError, match="got regression tasks, expected classification"):
        attack.check(lines.spec)
    with pytest.raises(MisfitError, match="without support examples"):
        attack.check(attrs.evolve(TASKS.spec, shot=0))
    with pytest.raises(OptionError, match="epsilon"):
        Attack(epsilon=-0.1)


# --- Runs and commands ----------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    kshot.register(sample_learner.NearestMean, name="sample-learner")
    kshot.register(sample_tasks.classification, name="sample-tasks", group="tasks")
    small = {"iterations": 2, "evaluate": {"episodes": 5}, "quiet": True}
    kshot.runs.train("sample-learner", "sample-tasks", run="a", **small)
    kshot.runs.train({"name": "sample-learner", "width": 8}, "sample-tasks", run="b", **small)
    return tmp_path / "a"


def cli(*args: object) -> Any:
    return CliRunner().invoke(main, list(map(str, args)))


def test_one_command_makes_the_table_of_clean_and_attacked_parts(run: Path) -> None:
    """``on=each`` tests four times on the same episodes, and compares each with the clean test."""
    flags = ["--evaluate.episodes=6", "--evaluate.attack.epsilon=0.3", "--evaluate.attack.on=each", "--quiet"]
    done = cli("evaluate", run, *flags, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [one["attack"].get("on") for one in found["results"]] == [None, "support", "query", "both"]
    assert found["labels"] == [f"attack on {on}" for on in ("nothing", "support", "query", "both")]
    assert [one["test"] for one in found["differences"]] == found["labels"][1:]
    assert {one["against"] for one in found["differences"]} == {"attack on nothing"}
    for on, one in zip(("support", "query", "both"), found["results"][1:], strict=True):
        single = kshot.runs.evaluate(
            run, evaluate={"episodes": 6, "attack": {"epsilon": 0.3, "on": on}}, quiet=True
        ).result
        assert single.mean == one["mean"]


def test_runs_are_compared_under_the_same_attack(run: Path) -> None:
    """Each attack is a test of its own; a run without it is refused by name."""
    flags = ["--evaluate.episodes=6", "--evaluate.attack=pgd", "--evaluate.attack.epsilon=0.3", "--quiet"]
    for name in ("a", "b"):
        assert cli("evaluate", name, *flags, "--evaluate.attack.on=each", f"--output={name}.json").exit_code == 0
    comparison = kshot.runs.compare("a.json", "b.json")
    tests = [row.test.partition(", ")[2] for row in comparison.rows]
    assert tests[::2] == tests[1::2]
    assert tests[::2] == ["", *(f"pgd 0.3 on {on}" for on in ("support", "query", "support and query"))]
    means = [one["mean"] for name in "ab" for one in json.loads(Path(f"{name}.json").read_text())["results"]]
    assert [row.mean for row in comparison.rows[::2]] + [row.mean for row in comparison.rows[1::2]] == means
    clean = cli("evaluate", "b", "--evaluate.episodes=6", "--quiet", "--output=clean.json")
    assert clean.exit_code == 0
    done = cli("compare", "a.json", "clean.json")
    assert done.exit_code != 0
    assert "attack" in done.stderr


def test_a_training_tests_with_its_attack_and_says_wrong_options_first(run: Path) -> None:
    """A recipe can ask for an attack; a wrong one is refused before anything is trained, and in a stored plan."""
    attack = {"name": "pgd", "epsilon": 0.2, "on": "both", "steps": 2}
    again = kshot.runs.train(
        "sample-learner", "sample-tasks", run="c", iterations=2, evaluate={"episodes": 4, "attack": attack}, quiet=True
    )
    assert again.result.attack["steps"] == 2
    assert kshot.runs.evaluate("c", quiet=True).result.mean == again.result.mean
    weaker = kshot.runs.evaluate("c", evaluate={"attack": {"epsilon": 0.1}}, quiet=True).result.attack
    assert (weaker["name"], weaker["epsilon"], weaker["on"], weaker["steps"]) == ("pgd", 0.1, "both", 2)
    assert kshot.runs.evaluate("c", evaluate={"attack": None}, quiet=True).result.attack == {}
    with pytest.raises(OptionError, match="epsilon"):
        kshot.runs.train("sample-learner", "sample-tasks", run="d", evaluate={"attack": "pgd"}, quiet=True)
    kshot.register(sample_tasks.Lines, name="sample-lines", group="tasks")
    assert not Path("d").exists()
    config = json.loads(Path("c/config.json").read_text())
    assert config["plan"]["evaluate"]["attack"]["on"] == "both"
    with pytest.raises(RunError, match=r"plan\..*epsilon"):
        kshot.runs.plan.Plan.of_run(Path("c"), {"plan": {**config["plan"], "evaluate": {"attack": {"epsilon": -1}}}})


def test_tasks_that_can_not_be_attacked_are_refused_before_training(run: Path) -> None:
    """``kshot check`` says so, too."""

    @kshot.register(name="sample-lines-learner")
    class Constant(nn.Module):
        needs = Needs(kinds=("regression",))

        def __init__(self, spec: kshot.TaskSpec) -> None:
            super().__init__()

        def meta_gradient(self, episodes: Episode) -> dict[str, float]:
            raise AssertionError("trained")

        def adapt(self, support: Support) -> Any:
            return lambda x: torch.zeros(*x.shape[:2], 1)

    kshot.register(sample_tasks.Lines, name="sample-lines", group="tasks")
    given = {"evaluate": {"attack": {"epsilon": 0.1}}, "quiet": True, "run": "e"}
    with pytest.raises(MisfitError, match="got regression tasks, expected classification"):
        kshot.runs.train("sample-lines-learner", "sample-lines", **given)
    done = cli("check", "sample-lines-learner", "sample-lines", "--evaluate.attack.epsilon=0.1")
    assert done.exit_code == MisfitError.exit_code
    assert "expected classification" in done.stderr
