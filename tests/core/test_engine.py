"""Test the engine: its arithmetic, its refusals, and what it must not change."""

import json
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import kshot
from kshot import ClassificationTasks, Engine, Episode, Needs, Pool, Support, Training
from kshot.errors import DataError, HookError, MisfitError, OptionError, RunError, TrainingError


def blobs(way: int = 3, shot: int = 2, query: int = 4, **options: object) -> ClassificationTasks:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(30, 6))
    x = (centres[:, None] + 0.4 * rng.normal(size=(30, 12, 6))).reshape(-1, 6).astype(np.float32)
    pools = {s: Pool.of(x, np.repeat(np.arange(30), 12)) for s in ("train", "val", "test")}
    return ClassificationTasks(pools, way=way, shot=shot, query=query, **options)  # type: ignore[arg-type]


class NearestMean(nn.Module):
    """A small prototypical learner with batch norm and dropout, so that statistics and chance matter."""

    needs = Needs(variable_way=True)
    training_defaults = Training(lr=0.01, meta_batch=4, iterations=30)

    def __init__(self, dropout: float = 0.0, norm: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Linear(6, 8), nn.BatchNorm1d(8) if norm else nn.Identity(), nn.Tanh(), nn.Dropout(dropout)
        )
        self.encoder = kshot.nn.Encoder(net)

    def logits(self, z_s: torch.Tensor, y: torch.Tensor, z_q: torch.Tensor, way: int) -> torch.Tensor:
        means = kshot.functional.class_means(z_s, y, way)
        return kshot.functional.prototypical_logits(z_q, means)

    def meta_gradient(self, episodes: Episode):
        s, q = episodes.support, episodes.query
        z = self.encoder(torch.cat([s.x, q.x], 1))
        logits = self.logits(z[:, : s.x.shape[1]], s.y, z[:, s.x.shape[1] :], s.way or 0)
        loss = F.cross_entropy(logits.flatten(0, 1), q.y.flatten())
        loss.backward()
        return {"loss": loss.detach()}

    def adapt(self, support: Support):
        z_s = self.encoder(support.x)
        return lambda x: self.logits(z_s, support.y, self.encoder(x), support.way or 0)


def states_equal(a: nn.Module, b: nn.Module, atol: float = 0.0) -> bool:
    """Parameters and running statistics; the number of batches a layer has seen is torch's own bookkeeping."""
    pairs = zip(a.state_dict().items(), b.state_dict().values(), strict=True)
    return all(torch.allclose(p, q, rtol=0, atol=atol) for (n, p), q in pairs if "num_batches" not in n)


def test_training_improves_and_evaluation_reports():
    """End to end, with the result's own words."""
    learner = NearestMean()
    engine = Engine(learner, blobs())
    before = engine.evaluate(100)
    metrics = engine.train(60)
    after = engine.evaluate(100)
    assert set(metrics) == {"loss"}
    assert after.mean > before.mean
    assert after.normalisation == "inductive"
    assert after.shape == {"way": 3, "shot": 2, "query": 4}
    assert after.backend["name"] == "cpu"
    assert after.iteration == 60


def test_an_outer_step_is_adam_on_the_mean_gradient():
    """Against a bare loop of torch."""
    engine, bare = Engine(NearestMean(norm=False), blobs()), NearestMean(norm=False)
    engine.train(5)
    optimizer = torch.optim.Adam(bare.parameters(), lr=0.01, fused=True)
    for t in range(5):
        optimizer.zero_grad()
        bare.meta_gradient(blobs().sample("train", range(4 * t, 4 * t + 4)))
        optimizer.step()
    assert states_equal(engine.learner, bare)


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_chunks_of_a_meta_batch_give_the_same_as_the_whole(chunk):
    """Gradients, metrics and running statistics, also where the last chunk is smaller; float64."""
    tasks = blobs()
    whole, parts = (Engine(NearestMean().double(), Doubled(tasks), meta_batch=4, chunk=c) for c in (None, chunk))
    assert whole.train(6)["loss"] == pytest.approx(parts.train(6)["loss"], rel=1e-9)
    assert states_equal(whole.learner, parts.learner, atol=1e-9)


class Doubled:
    """Tasks in float64 (the door asks for float32, so it is bypassed in this test alone)."""

    def __init__(self, tasks: ClassificationTasks) -> None:
        self.tasks, self.spec = tasks, tasks.spec

    def sample(self, split: str, indices):
        e = self.tasks.sample(split, indices)
        return kshot.episode.map_tensors(lambda t: t.double() if t.is_floating_point() else t, e)


@pytest.fixture(autouse=True)
def _float64_passes_the_door(monkeypatch):
    import kshot._engine.door

    engine = kshot._engine.door
    check = engine.check_episode
    monkeypatch.setattr(
        engine, "check_episode", lambda e, s, w: None if e.query.x.dtype == torch.float64 else check(e, s, w)
    )


def test_a_generator_takes_several_outer_steps_on_one_meta_batch():
    """The engine steps after each yield, in chunks too."""

    class Twice(NearestMean):
        def meta_gradient(self, episodes: Episode) -> Iterator[dict]:
            for _ in range(2):
                yield NearestMean.meta_gradient(self, episodes)

    once_more = NearestMean(norm=False).double()
    optimizer = torch.optim.Adam(once_more.parameters(), lr=0.01, fused=True)
    for t in range(3):
        for _ in range(2):
            optimizer.zero_grad()
            once_more.meta_gradient(Doubled(blobs()).sample("train", range(4 * t, 4 * t + 4)))
            optimizer.step()
    for chunk in (None, 2):
        engine = Engine(Twice(norm=False).double(), Doubled(blobs()), chunk=chunk)
        engine.train(3)
        assert states_equal(engine.learner, once_more, atol=1e-9)


def test_a_learner_without_a_loss_is_trained_by_its_pseudo_gradient():
    """As Reptile is: the engine knows ``.grad`` only."""

    class Pseudo(NearestMean):
        training_defaults = Training(optimizer="sgd", lr=0.5, meta_batch=2)

        def meta_gradient(self, episodes: Episode):
            for p in self.parameters():
                p.grad = torch.ones_like(p) if p.grad is None else p.grad + 1
            return {"moved": 1.0}

    learner = Pseudo()
    start = [p.detach().clone() for p in learner.parameters()]
    assert Engine(learner, blobs(), chunk=1).train(2) == {"moved": 1.0}
    assert all(torch.allclose(p, s - 1.0) for p, s in zip(learner.parameters(), start, strict=True))


def test_evaluation_changes_nothing():
    """Neither parameters, buffers, mode, gradients nor torch's random state; twice is the same."""
    learner = NearestMean(dropout=0.5)
    engine = Engine(learner, blobs())
    before = {n: t.clone() for n, t in learner.state_dict().items()}
    chance = torch.get_rng_state()
    first, second = engine.evaluate(50), engine.evaluate(50, batch=7)
    assert np.allclose(first.scores["accuracy"], second.scores["accuracy"])
    assert all(torch.equal(before[n], t) for n, t in learner.state_dict().items())
    assert torch.equal(torch.get_rng_state(), chance)
    assert not learner.training
    assert all(p.grad is None for p in learner.parameters())


def test_query_labels_never_reach_the_learner():
    """What adapt is given holds no query, unless it asks for query inputs."""
    seen = {}

    class Peeks(NearestMean):
        needs = Needs(variable_way=True, queries="at_adapt")

        def adapt(self, support: Support):
            seen["support"] = support
            return super().adapt(support)

    Engine(Peeks(), blobs()).evaluate(2)
    assert seen["support"].query_x.shape == (2, 12, 6)
    Peeks.needs = Needs(variable_way=True)
    Engine(Peeks(), blobs()).evaluate(2)
    assert seen["support"].query_x is None


def test_evaluation_on_other_tasks_and_with_perturbed_inputs():
    """Another way is checked against the learner's needs; attacks change the inputs only."""
    engine = Engine(NearestMean(), blobs(5))
    other = engine.evaluate(20, tasks=blobs(2))
    assert other.shape["way"] == 2
    noisy = engine.evaluate(200, perturb=lambda _, q: kshot.Examples(q.x + 100 * torch.randn_like(q.x), q.y))
    assert noisy.perturbed
    assert noisy.mean < engine.evaluate(200).mean - 0.2
    NearestMean.needs = Needs()
    try:
        with pytest.raises(MisfitError, match="built for 5 ways, the tasks have 2"):
            Engine(NearestMean(), blobs(5)).evaluate(20, tasks=blobs(2))
    finally:
        NearestMean.needs = Needs(variable_way=True)


def test_early_stopping_keeps_the_best_validated_parameters():
    """A learner that only gets worse ends with what it had at the first validation, after its patience."""

    class Worsens(NearestMean):
        def meta_gradient(self, episodes: Episode):
            with torch.no_grad():
                for p in self.parameters():
                    p.add_(0.5 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
            return {"loss": 0.0}

    engine = Engine(Worsens(norm=False), blobs(way=5, shot=1))
    start = Worsens(norm=False)
    start.meta_gradient(blobs().sample("train", [0]))
    engine.train(100, validate_every=1, validation_episodes=100, patience=3)
    assert engine.iteration == engine.best.iteration + 3
    reached = Worsens(norm=False)
    for _ in range(engine.best.iteration):
        reached.meta_gradient(blobs().sample("train", [0]))
    assert states_equal(engine.learner, reached)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Engine(NearestMean(), blobs(), meta_batch=0), OptionError, "got meta_batch=0"),
        (lambda: Engine(NearestMean(), blobs(), optimizer="adamax"), OptionError, "expected one of 'adam'"),
        (
            lambda: Engine(NearestMean(), blobs(), optimizer={"rate": 1}),
            OptionError,
            "got unknown option rate, expected some of name",
        ),
        (lambda: Engine(NearestMean(), blobs()).train(1, split="dev"), DataError, "got split 'dev', expected one of"),
        (lambda: Engine(NearestMean(), blobs(way=40)).train(1), DataError, "got way 40, expected at most 30"),
        (lambda: Engine(NearestMean(), blobs(shot=9)).train(1), DataError, "lower shot or query"),
        (lambda: Engine(NearestMean(), blobs()).train(1, patience=2), OptionError, "patience without validate_every"),
        (lambda: Engine(NearestMean(), blobs()).train(1, keep=0), OptionError, "keep 0, expected positive numbers"),
        (
            lambda: Engine(NearestMean(), blobs()).train(1, validate_every=1, validation_split="test"),
            OptionError,
            "must not see",
        ),
        (lambda: Engine(NearestMean(), blobs(way=(2, 3), block=6), meta_batch=4), MisfitError, "no multiple of meta_b"),
        (lambda: Engine(NearestMean(), blobs(way=(2, 3), block=2), meta_batch=4), MisfitError, "no multiple of meta_b"),
    ],
)
def test_bad_input_is_refused_before_any_compute(call, error, message):
    """Each with what came, what was expected and what to do."""
    with pytest.raises(error, match=message):
        call()


def test_a_meta_batch_that_divides_a_block_is_accepted():
    """Its tasks have one shape."""
    assert Engine(NearestMean(), blobs(way=(2, 3), block=6), meta_batch=3, hooks=()).train(4)


def test_coupled_tasks_are_never_split_silently():
    """Chunks are refused, whole meta-batches are not."""

    class Coupled(NearestMean):
        needs = Needs(couples_tasks=True)

    with pytest.raises(MisfitError, match="couples the tasks of a meta-batch"):
        Engine(Coupled(), blobs(), chunk=2)
    assert Engine(Coupled(), blobs()).train(2)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"loss": math.nan}, r"iteration 1: loss is nan on episodes 0..3 of split 'train'"),
        (None, "got NoneType, expected a mapping of scalars"),
        (torch.zeros(()), "got Tensor, expected a mapping of scalars"),
    ],
)
def test_a_learner_that_breaks_its_protocol_is_named(answer, message):
    """With the iteration and its episodes."""

    class Breaks(NearestMean):
        def meta_gradient(self, episodes: Episode):
            return answer

    with pytest.raises(TrainingError, match=message):
        Engine(Breaks(), blobs()).train(3)


def test_a_run_without_a_folder_writes_nothing(tmp_path, monkeypatch):
    """Code writes only when told where."""
    monkeypatch.chdir(tmp_path)
    Engine(NearestMean(), blobs()).train(3)
    assert list(tmp_path.iterdir()) == []


def test_hooks_see_the_life_of_a_run_and_keep_their_state(tmp_path):
    """In order; state travels in the checkpoint; the one that raises is named."""

    class Watch:
        def __init__(self) -> None:
            self.seen: list[str] = []

        @kshot.hookimpl
        def run_start(self, iteration, iterations):
            self.seen.append(f"start {iteration} {iterations}")

        @kshot.hookimpl
        def iteration_end(self, iteration, metrics):
            self.seen.append(f"iteration {iteration}")

        @kshot.hookimpl
        def checkpoint_saved(self, iteration):
            self.seen.append(f"saved {iteration}")

        @kshot.hookimpl
        def run_end(self, iteration, error):
            self.seen.append(f"end {iteration} {error}")

        def state_dict(self):
            return {"seen": list(self.seen)}

        def load_state_dict(self, state):
            self.seen = state["seen"]

    watch = Watch()
    Engine(NearestMean(), blobs(), hooks={"watch": watch}, run=tmp_path / "r").train(2)
    assert watch.seen == ["start 0 2", "iteration 1", "iteration 2", "saved 2", "end 2 None"]
    other = Watch()
    Engine(NearestMean(), blobs(), hooks={"watch": other}, run=tmp_path / "r").resume()
    assert other.seen == ["start 0 2", "iteration 1", "iteration 2"]

    class Raises:
        @kshot.hookimpl
        def iteration_end(self, iteration):
            raise ZeroDivisionError("oh")

    with pytest.raises(HookError, match=r"hook 'bad' raised in iteration_end: ZeroDivisionError\('oh'\)") as caught:
        Engine(NearestMean(), blobs(), hooks={"good": Watch(), "bad": Raises()}).train(2)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_the_rate_is_a_pure_function_of_the_iteration():
    """Schedules by hand."""
    outer = kshot.Outer(lr=1.0, schedule="step", every=10, factor=0.5)
    assert [outer.rate(t, 100) for t in (0, 9, 10, 25)] == [1.0, 1.0, 0.5, 0.25]
    assert kshot.Outer(lr=2.0, schedule="linear").rate(25, 100) == 1.5
    assert kshot.Outer(lr=2.0, schedule="cosine").rate(50, 100) == pytest.approx(1.0)
    assert kshot.Outer(lr=1.0, warmup=4).rate(1, 100) == 0.5


def test_the_run_folder_holds_what_is_needed_to_understand_it(tmp_path):
    """Config with every automatic choice, a line an iteration, checkpoints."""
    engine = Engine(NearestMean(), blobs(), run=tmp_path / "r", optimizer={"schedule": "linear"})
    engine.train(5, checkpoint_every=2, validate_every=5, validation_episodes=10)
    config = json.loads((tmp_path / "r/config.json").read_text())
    assert config["optimizer"]["schedule"] == "linear"
    assert config["backend"]["precision"] in ("float32", "bfloat16")
    assert config["train"]["iterations"] == 5
    lines = [json.loads(x) for x in (tmp_path / "r/metrics.jsonl").read_text().splitlines()]
    assert [x["iteration"] for x in lines] == [1, 2, 3, 4, 5, 5]
    assert lines[-1]["split"] == "val"
    assert sorted(p.name for p in (tmp_path / "r/checkpoints").iterdir()) == ["00000004.pt", "00000005.pt"]
    with pytest.raises(RunError, match="is not empty"):
        Engine(NearestMean(), blobs(), run=tmp_path / "r").train(5)


def test_counts_are_whole_numbers_of_any_type_and_can_be_stored(tmp_path):
    """A checkpoint with a number of numpy could be written and never be read again."""
    counts = {"validate_every": np.int64(2), "validation_episodes": np.int32(4), "keep": torch.tensor(1)}
    outer = {"lr": np.float64(0.01)}
    engine = Engine(NearestMean(), blobs(), meta_batch=np.int64(2), optimizer=outer, hooks=(), run=tmp_path / "run")
    engine.train(np.int64(3), checkpoint_seconds=np.float32(9), **counts)
    again = Engine(NearestMean(), blobs(), meta_batch=2, optimizer=outer, hooks=(), run=tmp_path / "run")
    assert again.resume() == 3
    assert again.evaluate(np.int64(5), batch=np.int8(2)).episodes == 5
    assert type(engine.outer.lr) is float


@pytest.mark.parametrize(
    "use",
    [
        lambda: Engine(NearestMean(), blobs()).train(2.5),
        lambda: Engine(NearestMean(), blobs()).train(True),
        lambda: Engine(NearestMean(), blobs()).train("3"),
        lambda: Engine(NearestMean(), blobs()).train(3, keep=None),
        lambda: Engine(NearestMean(), blobs()).train(2**40),
        lambda: Engine(NearestMean(), blobs()).train(1, checkpoint_seconds="soon"),
        lambda: Engine(NearestMean(), blobs(), meta_batch=2.0),
        lambda: Engine(NearestMean(), blobs(), chunk="a"),
        lambda: Engine(NearestMean(), blobs()).evaluate(2.5),
        lambda: Engine(NearestMean(), blobs()).evaluate("3"),
        lambda: Engine(NearestMean(), blobs()).evaluate(3, batch=-1),
        lambda: Engine(NearestMean(), blobs()).evaluate(3, batch=0),
        lambda: Engine(NearestMean(), blobs(), optimizer=torch.optim.Adam),
        lambda: Engine(NearestMean(), blobs(), optimizer=["adam"]),
        lambda: Engine(NearestMean(), blobs(), run=5),
        lambda: Engine(NearestMean(), blobs(), run="a\0b"),
        lambda: Engine(NearestMean(), blobs(), run="x" * 300),
    ],
)
def test_options_of_a_wrong_type_are_refused_before_any_compute(use):
    """None of them may be rounded, or raise an error of Python's."""
    with pytest.raises(OptionError, match=r"got .*expected"):
        use()


def test_config_that_json_can_not_hold_is_refused(tmp_path):
    """And no folder is left."""
    config = {}
    config["itself"] = config
    with pytest.raises(OptionError, match=r"^config: got values that can't be written as JSON \(Circular"):
        Engine(NearestMean(), blobs(), run=tmp_path / "run", config=config).train(1)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_component_is_refused_by_name():
    """Each of these was seen in somebody's first script."""
    tasks, learner = blobs(), NearestMean()
    for use, message in (
        (lambda: Engine(torch.nn.Linear, tasks), "learner: got the class Linear, expected a learner"),
        (lambda: Engine("protonet", tasks), "learner: got the text 'protonet', expected a learner"),
        (lambda: Engine(torch.nn.DataParallel(learner), tasks), "learner: got DataParallel, expected a learner"),
        (lambda: Engine(learner, "toy"), "tasks: got the text 'toy', expected tasks"),
        (lambda: Engine(learner, tasks.spec), "tasks: got a TaskSpec, expected the tasks themselves"),
        (lambda: Engine(learner, tasks, validate_on=tasks.spec), "tasks: got a TaskSpec, expected the tasks"),
        (lambda: Engine(learner, tasks).evaluate(2, tasks=tasks.spec), "tasks: got a TaskSpec, expected the tasks"),
        (lambda: Engine(learner, tasks, backend="cpu"), "backend: got the text 'cpu', expected a backend"),
    ):
        with pytest.raises(MisfitError, match=f"^{message}"):
            use()


def test_the_home_folder_may_be_written_as_a_tilde(tmp_path, monkeypatch):
    """Shells don't replace it in --run=~/runs, and a folder called ~ is removed at one's peril."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    Engine(NearestMean(), blobs(), hooks=(), run="~/runs/a").train(1)
    assert (tmp_path / "home" / "runs" / "a" / "config.json").is_file()
    assert not (tmp_path / "~").exists()
