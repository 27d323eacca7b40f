"""Several processes, here as threads: the same parameters and figures as one, agreement, and who reads and writes."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kshot
from kshot import ClassificationTasks, Engine, Episode, Needs, Pool, Support, Training
from kshot._engine.gradient import MetaBatch, MetaGradient, division
from kshot._engine.hook_specs import hookimpl
from kshot._engine.processes import agree, everywhere, exchange, first_then_rest, from_first
from kshot.errors import HookError, MisfitError, RunError, TrainingError

Work = Callable[[kshot.Cpu], Any]


class Table:
    """Where the ranks meet: what each put down in each round, and who has left."""

    def __init__(self, size: int) -> None:
        self.size, self.rounds, self.left = size, defaultdict[int, dict[int, Tensor]](dict), set[int]()
        self.changed = threading.Condition()

    def meet(self, rank: int, number: int, tensor: Tensor) -> list[Tensor]:
        here = self.rounds[number]
        with self.changed:
            here[rank] = tensor.clone()
            self.changed.notify_all()
            self.changed.wait_for(lambda: len(here) == self.size or self.left - here.keys(), 60)
        if len(here) < self.size:
            raise RuntimeError(f"Connection closed by rank {self.left}")
        return [here[r].clone() for r in range(self.size)]

    def leave(self, rank: int) -> None:
        with self.changed:
            self.left.add(rank)
            self.changed.notify_all()


class Threads:
    """A world whose ranks are threads of one process; counts what is called."""

    def __init__(self, rank: int, size: int, table: Table) -> None:
        self.rank, self.size, self._table = rank, size, table
        self.calls: list[str] = []
        self.lengths: list[int] = []
        self._round = 0

    def _all(self, name: str, tensor: Tensor) -> list[Tensor]:
        self.calls.append(name)
        self.lengths.append(tensor.numel())
        self._round += 1
        return self._table.meet(self.rank, self._round, tensor)

    def all_reduce(self, tensor: Tensor) -> Tensor:
        return torch.stack(self._all("all_reduce", tensor)).sum(0)

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        return self._all("all_gather", tensor)

    def broadcast(self, tensor: Tensor) -> Tensor:
        return self._all("broadcast", tensor)[0]


def on(size: int, work: Work) -> tuple[list[Any], list[BaseException | None]]:
    """What ``work(backend)`` gives, and what it raises, on each of ``size`` ranks. A rank that raises leaves."""
    table = Table(size)
    found: list[Any] = [None] * size
    raised: list[BaseException | None] = [None] * size

    def run(rank: int) -> None:
        backend = kshot.Cpu(keep_freed_memory=False)
        backend.world = Threads(rank, size, table)
        try:
            found[rank] = work(backend)
        except BaseException as error:
            raised[rank] = error
        finally:
            table.leave(rank)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return found, raised


def on_all(size: int, work: Work) -> list[Any]:
    """What ``work(backend)`` gives on each rank; none may raise."""
    found, raised = on(size, work)
    for error in raised:
        if error is not None:
            raise error
    return found


# --- Learners --------------------------------------------------------------------------------------------------------


def blobs(seed: int = 0) -> ClassificationTasks:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(30, 6))
    x = (centres[:, None] + 0.4 * rng.normal(size=(30, 12, 6))).reshape(-1, 6).astype(np.float32)
    pools = {s: Pool.of(x, np.repeat(np.arange(30), 12)) for s in ("train", "val", "test")}
    return ClassificationTasks(pools, way=3, shot=2, query=4, seed=seed)


class InFloat64:
    """Tasks in float64, so that what is compared is the arithmetic and not its rounding."""

    def __init__(self, tasks: ClassificationTasks) -> None:
        self.tasks, self.spec, self.seed = tasks, tasks.spec, tasks.seed

    def sample(self, split: str, indices: Any) -> Episode:
        episode = self.tasks.sample(split, indices)
        return kshot.episode.map_tensors(lambda t: t.double() if t.is_floating_point() else t, episode)


@pytest.fixture(autouse=True)
def _float64_passes_the_door(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kshot._engine.door, "check_episode", lambda *_: None)


class NearestMean(nn.Module):
    """A small prototypical learner with batch norm, a counter, a flag, a constant that is infinite, and a parameter
    that is never used."""

    needs = Needs(variable_way=True)
    training_defaults = Training(lr=0.01, meta_batch=5)

    def __init__(self) -> None:
        super().__init__()
        self.encoder = kshot.nn.Encoder(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh()))
        chance = torch.Generator().manual_seed(0)  # threads share torch's own
        for p in self.parameters():
            p.data.normal_(0, 0.5, generator=chance)
        self.unused = nn.Parameter(torch.ones(3))
        self.register_buffer("calls", torch.tensor(0))
        self.register_buffer("begun", torch.tensor(False))
        self.register_buffer("constant", torch.tensor([0.1, torch.inf, -torch.inf]))
        self.register_buffer("last", torch.zeros(()))

    def logits(self, support: Support, x: Tensor) -> Tensor:
        z = self.encoder(torch.cat([support.x, x], 1))
        n = support.x.shape[1]
        means = kshot.functional.class_means(z[:, :n], support.y, support.way or 0)
        return kshot.functional.prototypical_logits(z[:, n:], means)

    def losses(self, episodes: Episode) -> Tensor:
        logits, y = self.logits(episodes.support, episodes.query.x), episodes.query.y
        return F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").view_as(y).mean(1)

    def meta_gradient(self, episodes: Episode) -> Any:
        losses = self.losses(episodes)
        losses.mean().backward()
        self.calls = self.calls + 1
        self.begun = torch.ones_like(self.begun)
        self.last = losses.detach().mean().to(self.last)
        return {"loss": losses.detach().mean(), "mean key": float(episodes.support.key.double().mean())}

    def adapt(self, support: Support) -> Any:
        with torch.no_grad():
            return lambda x: self.logits(support, x)


class Pseudo(NearestMean):
    """Writes ``.grad`` itself, as Reptile does, to half of its parameters only."""

    def meta_gradient(self, episodes: Episode) -> Any:
        with torch.no_grad():
            scale = self.losses(episodes).mean()
        for p in list(self.parameters())[1:]:
            p.grad = scale * p.detach() + (0 if p.grad is None else p.grad)
        return {"scale": scale}


class Thrice(NearestMean):
    """Takes three outer steps on each meta-batch."""

    def meta_gradient(self, episodes: Episode) -> Iterator[Any]:
        for step in range(3):
            yield {**NearestMean.meta_gradient(self, episodes), **({"late": step} if step == 2 else {})}


class Coupled(NearestMean):
    """Weighs each task by its share of the loss: no mean over tasks."""

    needs = Needs(variable_way=True, couples_tasks=True)

    def meta_gradient(self, episodes: Episode) -> Any:
        losses = self.losses(episodes)
        weights = (losses / losses.sum()).detach()
        (weights * losses).sum().backward()
        return {"loss": losses.detach().mean(), "unevenness": weights.max()}


def trained(learner: Any, backend: kshot.Cpu, double: bool = True, **options: Any) -> tuple[Any, Mapping[str, float]]:
    tasks: Any = InFloat64(blobs()) if double else blobs()
    iterations = options.pop("iterations", 6)
    engine = Engine(learner.double() if double else learner, tasks, backend=backend, **options)
    return engine, engine.train(iterations)


def farthest(a: nn.Module, b: nn.Module) -> float:
    """The greatest difference of a parameter or buffer; how many batches a batch norm layer has seen is bookkeeping
    by which nothing goes."""
    gaps = []
    for (name, p), q in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        if "num_batches" not in name:
            gaps.append(torch.where(p == q, 0, (p.double() - q.double()).abs()).max())
    return float(torch.stack(gaps).max())  # NaN where one of them is


# --- The same as one process -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("learner", [NearestMean, Pseudo, Thrice, Coupled], ids=lambda c: c.__name__)
@pytest.mark.parametrize(("size", "meta_batch"), [(2, 5), (3, 2), (2, 1)])
def test_several_processes_learn_what_one_learns(learner: type[NearestMean], size: int, meta_batch: int) -> None:
    """Gradients, running statistics, counters, flags and metrics, where tasks can't be shared evenly or are fewer than
    the ranks too; in float64, so to rounding."""
    alone, expected = trained(learner(), kshot.Cpu(keep_freed_memory=False), meta_batch=meta_batch)
    for engine, metrics in on_all(size, lambda backend: trained(learner(), backend, meta_batch=meta_batch)):
        assert farthest(engine.learner, alone.learner) < 1e-8
        assert metrics.keys() == expected.keys()
        assert metrics == pytest.approx(expected, rel=1e-9)


def test_all_ranks_have_the_same_bits() -> None:
    """Or they would drift apart; float32."""
    first, second, third = on_all(3, lambda backend: trained(NearestMean(), backend, double=False)[0])
    assert farthest(first.learner, second.learner) == farthest(first.learner, third.learner) == 0


def test_chunks_within_processes_change_nothing() -> None:
    """5 tasks as 2 + 1 on one rank and 2 on the other; counters count the first chunk of all."""
    alone, expected = trained(NearestMean(), kshot.Cpu(keep_freed_memory=False))
    for engine, metrics in on_all(2, lambda backend: trained(NearestMean(), backend, chunk=2)):
        assert farthest(engine.learner, alone.learner) < 1e-8
        assert metrics == pytest.approx(expected, rel=1e-9)
        assert int(engine.learner.calls) == 6


def test_a_parameter_without_a_gradient_on_every_rank_has_none() -> None:
    """Adam would move it by its momentum if it were given zeros."""
    for engine, _ in on_all(2, lambda backend: trained(Pseudo(), backend)):
        assert next(engine.learner.parameters()) not in engine.optimizer.state


@pytest.mark.parametrize("learner", [NearestMean, Thrice], ids=lambda c: c.__name__)
def test_a_meta_update_takes_one_all_reduce(learner: type[NearestMean]) -> None:
    """However many parameters there are: what costs time between processes is how often they meet. Names of metrics
    are told once; a generator ends with one more, as its end must be known to all."""

    def count(backend: kshot.Cpu) -> list[str]:
        engine, _ = trained(learner(), backend, iterations=2)
        backend.world.calls.clear()
        engine.train(3)
        return backend.world.calls

    for calls in on_all(2, count):
        assert calls.count("all_reduce") == (4 if learner is Thrice else 1)


def test_what_is_summed_has_always_the_same_length() -> None:
    """Before the names of metrics are known, too: by the length goes in what order three ranks are summed, so a resumed
    run would differ in its last bits from an unbroken one."""

    def lengths(backend: kshot.Cpu) -> set[int]:
        trained(NearestMean(), backend, iterations=2)
        world = backend.world
        return {n for name, n in zip(world.calls, world.lengths, strict=True) if name == "all_reduce"}

    assert [len(found) for found in on_all(2, lengths)] == [1, 1]


def test_parts_that_take_different_numbers_of_outer_steps_are_refused() -> None:
    """In one process too, between chunks: their steps would belong to different meta-batches."""

    class Moody(NearestMean):
        def meta_gradient(self, episodes: Episode) -> Iterator[Any]:
            for _ in range(len(episodes.origin.indices)):
                yield NearestMean.meta_gradient(self, episodes)

    with pytest.raises(TrainingError, match=r"more outer steps on some of the .*couples_tasks"):
        trained(Moody(), kshot.Cpu(keep_freed_memory=False), chunk=2)
    _, raised = on(2, lambda backend: trained(Moody(), backend))
    assert [type(error) for error in raised] == [TrainingError] * 2


def test_not_finite_on_one_rank_is_an_error_on_all() -> None:
    """Or one would go on and wait for ever."""

    class Bursts(NearestMean):
        def meta_gradient(self, episodes: Episode) -> Any:
            metrics = NearestMean.meta_gradient(self, episodes)
            return {**metrics, "loss": torch.nan} if 4 in episodes.origin.indices else metrics

    _, raised = on(2, lambda backend: trained(Bursts(), backend))
    assert all("iteration 1: loss is nan on episodes 0..4" in str(error) for error in raised)
    assert all(error.everywhere for error in raised)  # type: ignore[union-attr]


def test_evaluation_is_shared_and_each_rank_has_all_of_it() -> None:
    """The same scores in the same order, bit for bit: batches are those of one process."""
    alone = Engine(NearestMean(), blobs()).evaluate(23, batch=4)

    def work(backend: kshot.Cpu) -> Any:
        learner = NearestMean()
        seen: list[int] = []
        adapt = learner.adapt
        learner.adapt = lambda support: (seen.append(len(support.key)), adapt(support))[1]  # type: ignore[method-assign]
        result = Engine(learner, blobs(), backend=backend).evaluate(23, batch=4)
        return result, sum(seen[1:])  # first, the learner's queries are tried on one episode

    (first, part), (second, rest) = on_all(2, work)
    assert (part, rest) == (12, 11)
    for result in (first, second):
        for name, values in alone.scores.items():
            assert np.array_equal(result.scores[name], values)


def test_validation_stops_all_ranks_at_the_same_iteration(tmp_path: Path) -> None:
    """They decide by the same figure."""

    def work(backend: kshot.Cpu) -> Engine:
        engine = Engine(NearestMean(), blobs(), backend=backend, optimizer={"lr": 3.0}, run=tmp_path / "run")
        engine.train(200, validate_every=1, patience=3, validation_episodes=10)
        return engine

    first, second = on_all(2, work)
    assert first.iteration == second.iteration < 200
    assert first.best.iteration == second.best.iteration
    assert farthest(first.learner, second.learner) == 0


# --- Who reads and writes --------------------------------------------------------------------------------------------


class Witness:
    """A hook that keeps what it is told, and evaluates on its own."""

    def __init__(self, evaluates: bool = False) -> None:
        self.told: list[int] = []
        self.evaluates = evaluates

    @hookimpl
    def iteration_end(self, engine: Engine, iteration: int, metrics: Mapping[str, float]) -> None:
        self.told.append(iteration)
        if self.evaluates:
            assert engine.evaluate(3).episodes == 3


@pytest.mark.parametrize("evaluates", [False, True])
def test_hooks_run_on_rank_0_alone_and_may_evaluate_there(evaluates: bool) -> None:
    """A log written twice is wrong, and a picture needs an evaluation that no other rank is asked for."""

    def work(backend: kshot.Cpu) -> tuple[list[int], Engine]:
        witness = Witness(evaluates)
        return witness.told, trained(NearestMean(), backend, double=False, hooks=[witness])[0]

    (told, first), (nothing, second) = on_all(2, work)
    assert (told, nothing) == ([1, 2, 3, 4, 5, 6], [])
    assert farthest(first.learner, second.learner) == 0


@pytest.mark.parametrize("double", [False, True], ids=["float32", "float64"])
def test_rank_0_writes_and_all_go_on_from_what_it_reads(tmp_path: Path, double: bool) -> None:
    """To the bits of an unbroken run; a rank may have no disk in common with it. With other numbers of processes, to
    rounding."""

    def run(iterations: int, resume: bool, place: str) -> Work:
        def work(backend: kshot.Cpu) -> Any:
            folder = tmp_path / (place if backend.world.rank == 0 else "no disk here")
            tasks: Any = InFloat64(blobs()) if double else blobs()
            learner = NearestMean().double() if double else NearestMean()
            engine = Engine(learner, tasks, backend=backend, run=folder, hooks=["metrics"])
            assert (engine.resume() if resume else 0) == (3 if resume else 0)
            engine.train(iterations, checkpoint_every=3, validate_every=3, validation_episodes=4)
            return engine

        return work

    (whole, _) = on_all(2, run(6, False, "whole"))
    on_all(2, run(3, False, "broken"))
    first, second = on_all(2, run(6, True, "broken"))
    assert farthest(first.learner, whole.learner) == farthest(second.learner, whole.learner) == 0
    assert not (tmp_path / "no disk here").exists()
    log = "metrics.jsonl"
    assert (tmp_path / "broken" / log).read_bytes() == (tmp_path / "whole" / log).read_bytes()
    on_all(2, run(3, False, "fewer"))
    (alone,) = on_all(1, run(6, True, "fewer"))
    assert farthest(alone.learner, whole.learner) < (1e-8 if double else 1e-2)  # Adam moves by the noise of zeros


def test_a_checkpoint_of_another_run_is_refused_by_all(tmp_path: Path) -> None:
    """A rank that does not read it must not train on."""
    on_all(1, lambda backend: trained(NearestMean(), backend, run=tmp_path / "run"))
    _, raised = on(2, lambda b: Engine(NearestMean(), blobs(), backend=b, run=tmp_path / "run", seed=3).resume())
    told = "seed: the checkpoint has 0, this engine 3"
    assert all(isinstance(error, RunError) and told in str(error) for error in raised)


# --- Agreement -------------------------------------------------------------------------------------------------------


def differently(backend: kshot.Cpu, what: str) -> Any:
    """An engine that on rank 1 is another in one respect."""
    odd = backend.world.rank == 1
    learner = NearestMean()
    options: dict[str, Any] = {}
    tasks = blobs(seed=odd and what == "seed")
    if odd and what == "parameters":
        with torch.no_grad():
            learner.unused[1] += 1e-3
    if odd and what == "data":
        tasks.fingerprint = "another"
    if what in ("meta_batch", "lr"):
        options = {"meta_batch": 4 + odd} if what == "meta_batch" else {"optimizer": {"lr": 0.1 + odd}}
    if odd and what == "precision":
        backend.precision = "bfloat16"
    return Engine(learner, tasks, backend=backend, **options).train(3 + (odd and what == "iterations"))


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("parameters", "learner.parameters.unused: rank 1 has "),
        ("data", "tasks.data: rank 1 has 'another', rank 0 has "),
        ("seed", "tasks.seed: rank 1 has 1, rank 0 has 0"),
        ("meta_batch", "engine.meta_batch: rank 1 has 5, rank 0 has 4"),
        ("lr", "optimizer.lr: rank 1 has 1.1, rank 0 has 0.1"),
        ("precision", "backend.precision: rank 1 has 'bfloat16', rank 0 has 'float32'"),
        ("iterations", "train.iterations: rank 1 has 4, rank 0 has 3"),
    ],
)
def test_ranks_that_disagree_are_refused_by_rank_and_field(what: str, said: str) -> None:
    """On all ranks alike, before any compute: otherwise they would train on different things and call it one."""
    _, raised = on(3, lambda backend: differently(backend, what))
    assert all(isinstance(error, MisfitError) and said in str(error) for error in raised)
    assert len({str(error) for error in raised}) == 1
    assert "rank 2" not in str(raised[0])


def test_other_versions_of_a_plugin_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """On another machine, another package may be installed under the same name."""
    import kshot._engine.identity

    found = threading.local()
    monkeypatch.setattr(kshot._engine.identity, "versions", lambda *_: {"kshot-x": found.version})

    def work(backend: kshot.Cpu) -> None:
        found.version = f"1.{backend.world.rank}"
        trained(NearestMean(), backend)

    _, raised = on(2, work)
    assert all("versions.kshot-x: rank 1 has '1.1', rank 0 has '1.0'" in str(error) for error in raised)


def test_ranks_at_different_calls_are_refused() -> None:
    """A script in which one rank evaluates while the others train."""
    _, raised = on(
        2, lambda b: getattr(Engine(NearestMean(), blobs(), backend=b), ("train", "evaluate")[b.world.rank])(2)
    )
    assert all("call: rank 1 has 'evaluate', rank 0 has 'train'" in str(error) for error in raised)


def test_parameters_that_drift_apart_are_noticed_before_a_figure_is_reported() -> None:
    """As those of a learner would that keeps something to itself."""

    def work(backend: kshot.Cpu) -> None:
        engine, _ = trained(NearestMean(), backend, double=False)
        if backend.world.rank == 1:
            with torch.no_grad():
                engine.learner.unused.add_(1e-6)
        engine.evaluate(4)

    _, raised = on(2, work)
    assert all("learner.parameters.unused: rank 1" in str(error) for error in raised)


def test_a_rank_that_fails_leaves_none_of_the_others_waiting() -> None:
    """They say that they lost it; what happened, it says itself."""

    class Fails:
        @hookimpl
        def iteration_end(self, engine: Engine, iteration: int, metrics: Mapping[str, float]) -> None:
            raise ValueError("disk on fire")

    _, raised = on(2, lambda backend: trained(NearestMean(), backend, hooks=[Fails()]))
    assert isinstance(raised[0], HookError)
    assert isinstance(raised[1], TrainingError)
    assert "rank 1 of 2 lost the other processes" in str(raised[1])
    assert raised[1].everywhere, "rank 0 tells it, if it is there"  # type: ignore[attr-defined]


# --- Words between ranks ---------------------------------------------------------------------------------------------


def test_exchange_gives_every_value_in_order_of_rank() -> None:
    """Of different lengths, with tensors in them, and empty ones."""

    def work(backend: kshot.Cpu) -> Any:
        rank = backend.world.rank
        return exchange(backend.world, {"rank": rank, "text": "x" * 1000 * rank, "t": [torch.arange(rank)]})

    for values in on_all(3, work):
        assert [(v["rank"], len(v["text"]), v["t"][0].tolist()) for v in values] == [
            (0, 0, []),
            (1, 1000, [0]),
            (2, 2000, [0, 1]),
        ]


def test_what_rank_0_makes_reaches_all_and_only_it_makes_it() -> None:
    """A folder is looked at once; None is a value too."""
    made: list[int] = []

    def work(backend: kshot.Cpu) -> Any:
        rank = backend.world.rank
        return from_first(backend.world, lambda: made.append(rank) or {"x": 1}), from_first(backend.world, lambda: None)

    assert on_all(3, work) == [({"x": 1}, None)] * 3
    assert made == [0]


def test_rank_0_makes_before_the_others_do() -> None:
    """What it downloads, they find."""
    order: list[int] = []

    def make(rank: int) -> None:
        time.sleep(0.1 if rank == 0 else 0)  # a download takes a while, and the others must not overtake it
        order.append(rank)

    on_all(3, lambda backend: first_then_rest(backend.world, lambda: make(backend.world.rank)))
    assert order[0] == 0
    assert sorted(order) == [0, 1, 2]


def test_one_process_asks_nobody() -> None:
    """No call of the world, no copy."""
    world, value = kshot.Cpu(keep_freed_memory=False).world, object()
    assert exchange(world, value) == [value]
    assert from_first(world, lambda: value) is value
    agree(world, {"anything": value})


def test_agreement_tells_what_is_there_on_one_rank_only() -> None:
    """And shortens what is long."""
    _, raised = on(2, lambda b: agree(b.world, {"x": {"y" * (1 + b.world.rank): "z" * 500}}))
    assert "  - x.y: rank 1 has none, rank 0 has 'zzz" in str(raised[0])
    assert "  - x.yy: rank 1 has 'zzz" in str(raised[0])
    assert len(str(raised[0])) < 600


@pytest.mark.parametrize("odd", [0, 1, 2, 3])
def test_every_rank_is_compared(odd: int) -> None:
    """Not only the next one: whichever differs is named, on all ranks."""
    _, raised = on(4, lambda b: agree(b.world, {"x": int(b.world.rank == odd)}))
    named = [rank for rank in range(1, 4) if (rank == odd) != (odd == 0)]
    for error in raised:
        assert isinstance(error, MisfitError)
        assert [rank for rank in range(4) if f"x: rank {rank} has" in str(error)] == named


def test_an_error_of_all_is_marked() -> None:
    """The command line prints it once."""
    assert everywhere(TrainingError("x")).everywhere  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("couples", "meta_batch", "size", "said"),
    [
        (False, 4, 1, ""),
        (False, 4, 2, "2 processes share the 4 tasks"),
        (False, 1, 4, "meta_batch 1 leaves 3 of the 4 processes without work"),
        (True, 4, 2, "each of the 2 processes computes the whole meta-batch"),
    ],
)
def test_how_the_work_is_shared_is_said(couples: bool, meta_batch: int, size: int, said: str) -> None:
    """A process that idles, or does what another does, costs money."""
    text = division(Needs(couples_tasks=couples), meta_batch, size)
    assert said in text
    assert bool(text) == (size > 1)


@pytest.mark.parametrize("asked", [-1, 0, 1])
def test_all_ranks_know_that_one_was_asked_to_stop(asked: int) -> None:
    """They learn it with the sums of the gradients, so they stop after the same iteration."""

    def work(backend: kshot.Cpu) -> tuple[bool, bool]:
        learner = NearestMean()
        gradient = MetaGradient(learner, list(learner.parameters()), backend)
        known = []
        for stop in (backend.world.rank == asked, False):
            batch = MetaBatch(blobs(), "train", range(4), 4, (0, 0), stop)
            assert [metrics["loss"] for metrics in gradient.steps(batch)]
            known.append(gradient.stop)
        return known[0], known[1]

    assert on_all(2, work) == [(asked >= 0, False)] * 2
