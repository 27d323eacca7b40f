"""Test what ruins a training unseen: it is refused with its place, or does no harm."""

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import kshot
from kshot import ClassificationTasks, Engine, Pool, Training
from kshot._engine.builtin_hooks import MetricsLog, Progress
from kshot._engine.interruption import Schedule
from kshot._engine.modes import to_evaluation, to_training
from kshot._engine.run_folder import RunFolder, advice, digest, load_checkpoint
from kshot._engine.run_lock import only_training
from kshot.checks import check_episode
from kshot.errors import DataError, HookError, MisfitError, RunError, TrainingError
from kshot.testing import sample_tasks


def blobs(way: int = 3) -> ClassificationTasks:
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(12, 1, 6)) + 0.4 * rng.normal(size=(12, 10, 6))).reshape(-1, 6).astype(np.float32)
    pools = {split: Pool.of(x, np.repeat(np.arange(12), 10)) for split in ("train", "val", "test")}
    return ClassificationTasks(pools, way=way, shot=2, query=3)


class Prototypes(nn.Module):
    """Classify by class means of the embeddings of any net."""

    needs = kshot.Needs(variable_way=True)
    training_defaults = Training(lr=0.01, meta_batch=4, iterations=6)

    def __init__(self, *net: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(*(net or (nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))))

    def logits(self, support: kshot.Support, x: torch.Tensor) -> torch.Tensor:
        means = kshot.functional.class_means(self.net(support.x), support.y, support.way)
        return kshot.functional.prototypical_logits(self.net(x), means)

    def meta_gradient(self, episodes):
        logits = self.logits(episodes.support, episodes.query.x)
        loss = F.cross_entropy(logits.flatten(0, 1), episodes.query.y.flatten())
        loss.backward()
        return {"loss": loss.detach()}

    def adapt(self, support):
        return lambda x: self.logits(support, x)


def parameters(learner: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in learner.parameters()])


# --- Numbers that are not finite -------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("optimizer", [{}, {"clip": 1.0}])
@pytest.mark.parametrize("chunk", [4, 2])
def test_a_gradient_that_is_not_finite_is_refused_before_the_step(bad, optimizer, chunk):
    """The message names the iteration, its episodes and the parameter; the parameters are those before the step."""

    class Breaks(Prototypes):
        def meta_gradient(self, episodes):
            metrics = super().meta_gradient(episodes)
            if engine.iteration == 2:
                self.net[2].bias.grad[1] = bad
            return metrics

    learner = Breaks()
    engine = Engine(learner, blobs(), optimizer=optimizer, chunk=chunk, hooks=())
    engine.train(2)
    before = parameters(learner)
    with pytest.raises(TrainingError, match=r"iteration 3: the gradient of net\.2\.bias is .* on episodes 8\.\.11"):
        engine.train(6)
    assert torch.equal(parameters(learner), before)


def test_a_gradient_whose_norm_overflows_is_not_clipped_to_nothing():
    """Every number in it is finite, but the scaled gradient would be 0."""

    class Huge(Prototypes):
        def meta_gradient(self, episodes):
            metrics = super().meta_gradient(episodes)
            self.net[2].bias.grad.fill_(3e38)
            return metrics

    with pytest.raises(TrainingError, match="iteration 1: the norm of the gradient is inf"):
        Engine(Huge(), blobs(), optimizer={"clip": 1.0}, hooks=()).train(2)


def test_sparse_gradients_are_looked_at_too():
    """The gradient of ``nn.Embedding(sparse=True)`` is a sparse tensor."""

    class Table(Prototypes):
        def __init__(self, bad: float) -> None:
            super().__init__()
            self.table, self.bad = nn.Embedding(5, 3, sparse=True), bad

        def meta_gradient(self, episodes):
            (self.table(torch.tensor([1])).sum() * self.bad).backward()
            return {"loss": 0.0}

    Engine(Table(1.0), blobs(), optimizer="sgd", hooks=()).train(2)
    with pytest.raises(TrainingError, match=r"gradient of table\.weight is NaN"):
        Engine(Table(math.nan), blobs(), optimizer="sgd", hooks=()).train(2)


def test_nan_parameters_are_refused_at_the_end_without_a_run_folder():
    """A learner may write into its own parameters; training must not return as if all were well."""

    class Writes(Prototypes):
        def meta_gradient(self, episodes):
            with torch.no_grad():
                self.net[0].weight[0, 0] = math.nan
            return {"loss": 0.0}

    with pytest.raises(TrainingError, match="iteration 2: a parameter is NaN"):
        Engine(Writes(), blobs(), hooks=()).train(2)


def test_nan_predictions_are_not_scored():
    """The first class would be right in one of three cases: 33.33 % accuracy of a learner that predicts nothing."""
    learner = Prototypes()
    engine = Engine(learner, blobs(), hooks=())
    with torch.no_grad():
        learner.net[0].weight.fill_(math.nan)
    with pytest.raises(TrainingError, match=r"got NaN predictions on episodes 0\.\.\d+ of split 'test'"):
        engine.evaluate(4)


# --- What does not fit the tasks -------------------------------------------------------------------------------------


class Regressor(Prototypes):
    """Predict one number for each input."""

    needs = kshot.Needs(kinds=("regression",))

    def meta_gradient(self, episodes):
        loss = (self.net(episodes.query.x) - episodes.query.y).square().mean()
        loss.backward()
        return {"loss": loss.detach()}

    def adapt(self, support):
        return self.net


def test_predictions_of_another_shape_are_refused_before_training():
    """Targets [n, 1] beside predictions [n] would be broadcast; 7 logits for 3 ways are another problem."""
    waves = sample_tasks.Lines()
    flat = Regressor(nn.Linear(waves.spec.input_shape[0], 1), nn.Flatten(1))
    engine = Engine(flat, waves, hooks=())
    before = torch.get_rng_state(), parameters(flat)
    with pytest.raises(MisfitError, match=r"Regressor: got tasks .* got shape \(1, \d+\) .* expected \(1, \d+, 1\)"):
        engine.train(3)
    assert engine.iteration == 0
    assert torch.equal(before[0], torch.get_rng_state())
    assert torch.equal(before[1], parameters(flat))

    class Wide(Prototypes):
        def adapt(self, support):
            return lambda x: torch.zeros(*x.shape[:2], 7)

    with pytest.raises(MisfitError, match=r"got shape \(1, 9, 7\) for classification, expected \(1, 9, 3\)"):
        Engine(Wide(), blobs(), hooks=()).train(3)


def test_a_learner_that_can_not_predict_is_refused_before_training():
    """It would fail in the first validation or in the test, after the training."""

    class Fails(Prototypes):
        def adapt(self, support):
            raise IndexError("no class 7")

    with pytest.raises(MisfitError, match=r"Fails: got IndexError while it predicted .*: no class 7; .* nothing was"):
        Engine(Fails(), blobs(), hooks=()).train(3)

    class Refuses(Prototypes):
        def adapt(self, support):
            raise DataError("own words")

    with pytest.raises(DataError, match=r"^own words$"):
        Engine(Refuses(), blobs(), hooks=()).train(3)
    double = Prototypes(nn.Linear(6, 8)).double()
    engine = Engine(double, blobs(), hooks=())
    with pytest.raises(MisfitError, match=r"Prototypes: got RuntimeError while it predicted one training episode: .*"):
        engine.train(3)
    assert engine.iteration == 0


def test_a_learner_without_trained_parameters_is_said_so():
    """Torch says that "element 0 of tensors does not require grad"."""
    learner = Prototypes()
    learner.requires_grad_(False)
    with pytest.raises(MisfitError, match=r"Prototypes: got no parameter that requires a gradient, expected one"):
        Engine(learner, blobs(), hooks=()).train(3)

    class Breaks(Prototypes):
        def meta_gradient(self, episodes):
            raise RuntimeError("of another kind")

    with pytest.raises(RuntimeError, match=r"^of another kind$"):
        Engine(Breaks(), blobs(), hooks=()).train(3)


def test_trying_the_predictions_changes_nothing():
    """Buffers, extra state, modes and the random states of torch, numpy and Python are as before."""

    class Noisy(nn.BatchNorm1d):
        calls = 0

        def forward(self, x):
            self.calls += 1
            self.running_mean.add_(torch.randn(8) + np.random.rand())
            return super().forward(x.flatten(0, 1)).view_as(x)

        def get_extra_state(self):
            return {"calls": self.calls}

        def set_extra_state(self, state):
            self.calls = state["calls"]

    norm = Noisy(8)
    learner = Prototypes(nn.Linear(6, 8), norm)
    engine = Engine(learner, blobs(), hooks=())
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    engine.train(0)
    assert norm.calls == 0
    assert norm.running_mean.tolist() == [0.0] * 8
    assert torch.equal(torch_state, torch.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])


@pytest.mark.parametrize(("part", "shape"), [("support", (1, 1, 1)), ("query", (1, 5)), ("query", (1, 5, 2))])
def test_targets_are_compared_with_inputs_and_spec(part, shape):
    """They would be broadcast against predictions [B, n, 1] without a word."""
    tasks = sample_tasks.Lines()
    episode = tasks.sample("train", [0])
    check_episode(episode, tasks.spec, "waves")
    object.__setattr__(getattr(episode, part), "y", torch.zeros(shape))
    with pytest.raises(DataError, match=rf"waves: {part}\.y: got shape .* by the spec's target_shape \(1,\)"):
        check_episode(episode, tasks.spec, "waves")


# --- Going on with training ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["unfrozen", "replaced", "another width"])
def test_layers_that_change_between_two_calls_are_trained(what, tmp_path):
    """The optimizer takes them up, keeps the state of the others, and the run can be saved and resumed."""
    learner = Prototypes()
    learner.net[0].requires_grad_(False)
    constant = {"schedule": "constant"}
    engine = Engine(learner, blobs(), optimizer=constant, hooks=())
    validation = {} if what == "unfrozen" else {"validate_every": 1, "validation_episodes": 4}
    engine.train(3, **validation)
    if what == "unfrozen":
        learner.net[0].requires_grad_(True)
    elif what == "replaced":
        learner.net[0] = nn.Linear(6, 8)
    else:
        learner.net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))
    before = learner.net[0].weight.detach().clone()
    engine.train(7, **validation)
    assert not torch.equal(before, learner.net[0].weight)
    assert {int(s["step"]) for s in engine.optimizer.state.values()} == ({4} if what == "another width" else {4, 7})
    assert engine.parameters == list(learner.parameters())
    engine.save(tmp_path / "c.pt")
    net = [nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)] if what == "another width" else []
    again = Engine(Prototypes(*net), blobs(), optimizer=constant, hooks=())
    assert again.resume(tmp_path / "c.pt") == 7
    again.learner.net[0].requires_grad_(False)
    with pytest.raises(RunError, match=r"optimizer.param_groups.0..params: got"):
        again.resume(tmp_path / "c.pt")


def test_a_frozen_layer_does_not_move():
    """Not even by the momentum that it had before."""
    learner = Prototypes()
    engine = Engine(learner, blobs(), optimizer={"name": "sgd", "momentum": 0.9, "schedule": "constant"}, hooks=())
    engine.train(2)
    learner.net[0].requires_grad_(False)
    before = learner.net[0].weight.detach().clone()
    engine.train(4)
    assert torch.equal(before, learner.net[0].weight)


def test_modules_in_evaluation_mode_stay_in_it():
    """Those that the user set so, and frozen ones, also after a validation; the others are trained in training mode."""
    frozen = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5)).requires_grad_(False)
    still, active = nn.Dropout(0.5), nn.Dropout(0.5)
    learner = Prototypes(frozen, still, active, nn.Linear(8, 4))
    still.eval()
    modes = []

    class Watch:
        @kshot.hookimpl
        def iteration_end(self, engine):
            engine.evaluate(2)
            modes.append([m.training for m in (learner, frozen, frozen[1], still, active)])

    engine = Engine(learner, blobs(), hooks=[Watch()])
    engine.train(4, validate_every=1, validation_episodes=2)
    assert modes == [[True, False, False, False, True]] * 4
    assert not any(m.training for m in learner.modules())


def test_a_user_changes_the_modes_by_putting_the_learner_into_training_mode():
    """In a learner in evaluation mode the modes of its modules say nothing."""
    learner = Prototypes(nn.Linear(6, 4), nn.Dropout(0.5))
    to_evaluation(learner)
    to_training(learner)
    assert learner.net[1].training
    learner.net[1].eval()
    to_training(learner)
    assert not learner.net[1].training
    learner.train()
    to_training(learner)
    assert learner.net[1].training


def test_episodes_and_iterations_draw_different_numbers():
    """One dropout mask for a whole meta-batch, or for all iterations, would not average out."""
    drawn = []

    class Drawing(Prototypes):
        def meta_gradient(self, episodes):
            drawn.append(tuple(torch.rand(4).tolist()))
            return super().meta_gradient(episodes)

    Engine(Drawing(nn.Linear(6, 4)), blobs(), meta_batch=3, chunk=1, hooks=()).train(2)
    assert len(drawn) == len(set(drawn)) == 6


@pytest.mark.parametrize("norm", [False, True])
def test_dropout_does_not_depend_on_the_chunks(norm):
    """Each episode has its own mask, so every division of a meta-batch gives the same parameters, to rounding."""

    def learnt(chunk: int, iterations: tuple[int, ...]) -> torch.Tensor:
        torch.manual_seed(1)
        layers = [nn.Linear(6, 8), *([nn.BatchNorm1d(8)] if norm else []), nn.Dropout(0.5), nn.Linear(8, 4)]
        learner = Prototypes()
        learner.net = kshot.nn.Encoder(nn.Sequential(*layers))
        engine = Engine(learner, blobs(), meta_batch=4, chunk=chunk, optimizer={"schedule": "constant"}, hooks=())
        for number in iterations:
            engine.train(number)
        floating = [b for b in learner.state_dict().values() if b.is_floating_point()]
        return torch.cat([b.detach().flatten() for b in floating])

    alone = learnt(1, (4,))
    for chunk in (2, 3, 4):
        assert torch.equal(learnt(chunk, (4,)), alone)
    assert torch.equal(learnt(4, (2, 4)), alone)


# --- What is stored can be read again --------------------------------------------------------------------------------


class Keeping:
    """A hook with a state."""

    def __init__(self, value: object) -> None:
        self.value = value

    @kshot.hookimpl
    def iteration_end(self, metrics):
        pass

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


@pytest.mark.parametrize(
    "value", [1.5, np.float64(1.5), np.int64(3), [np.bool_(True)], {"a": (None, "b")}, torch.ones(2), 2**80, b"c"]
)
def test_plain_states_of_hooks_come_back(value, tmp_path):
    """Numbers of numpy come back as Python's."""
    Engine(Prototypes(), blobs(), hooks=[Keeping(value)], run=tmp_path / "r").train(2)
    hook = Keeping(None)
    Engine(Prototypes(), blobs(), hooks=[hook], run=tmp_path / "r").resume()
    assert torch.equal(torch.as_tensor(hook.value), value) if torch.is_tensor(value) else hook.value == value


@pytest.mark.parametrize("value", [np.arange(3), Path("a"), deque([1]), {1, 2}, [{"a": np.datetime64("2020")}], print])
def test_other_states_of_hooks_are_refused_when_they_are_written(value, tmp_path):
    """Otherwise the checkpoint would be refused as corrupt when the run is resumed, and the run would be lost."""
    engine = Engine(Prototypes(), blobs(), hooks={"mine": Keeping(value)}, run=tmp_path / "r")
    with pytest.raises(HookError, match=r"hook 'mine'\['value'\].*: got .*expected numbers, text"):
        engine.train(4, checkpoint_every=2)
    assert RunFolder.open(tmp_path / "r").checkpoints() == []


class Counting(nn.Linear):
    """Count calls in torch's own extra state."""

    def __init__(self, *sizes: int, state: object = None) -> None:
        super().__init__(*sizes)
        self.calls, self.other = 0, state

    def forward(self, x):
        self.calls += 1
        return super().forward(x)

    def get_extra_state(self):
        return {"calls": self.calls, "other": self.other}

    def set_extra_state(self, state):
        self.calls = state["calls"]


class Graph(nn.Linear):
    """Multiply by a sparse matrix first."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.register_buffer("adjacency", torch.eye(inputs).to_sparse())

    def forward(self, x):
        return super().forward((self.adjacency @ x.flatten(0, 1).T).T.view_as(x))


@pytest.mark.parametrize("layer", [Counting, Graph])
@pytest.mark.parametrize("chunk", [4, 2])
def test_extra_state_and_sparse_buffers_are_trained_validated_and_resumed(layer, chunk, tmp_path):
    """They are torch's own; ``state_dict`` holds them beside dense tensors."""

    def made() -> Engine:
        return Engine(Prototypes(layer(6, 4)), blobs(), chunk=chunk, run=tmp_path / "r", hooks=())

    first, second = made(), made()
    first.train(6, validate_every=2, validation_episodes=4)
    assert second.resume() == 6
    assert torch.equal(parameters(second.learner), parameters(first.learner))
    if layer is Counting:
        assert second.learner.net[0].calls == first.learner.net[0].calls > 0
    assert np.array_equal(first.evaluate(5).scores["accuracy"], second.evaluate(5).scores["accuracy"])
    made().load(RunFolder.open(tmp_path / "r").newest())


def test_extra_state_that_can_not_be_read_again_is_refused_by_its_module(tmp_path):
    """When the first checkpoint is written, not when the run is resumed."""
    engine = Engine(Prototypes(Counting(6, 4, state=Path("a"))), blobs(), run=tmp_path / "r", hooks=())
    with pytest.raises(RunError, match=r"module 'net\.0'.*_extra_state\['other'\]: got pathlib"):
        engine.train(2)


# --- Interruptions ---------------------------------------------------------------------------------------------------


class Interrupts:
    """Send a signal, or raise, after some iteration."""

    def __init__(self, at: int, how: str) -> None:
        self.at, self.how = at, how

    @kshot.hookimpl
    def iteration_end(self, iteration):
        if iteration == self.at:
            signal.raise_signal(getattr(signal, self.how))


@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM"])
def test_an_interrupted_training_is_saved_and_goes_on_to_the_same_bits(how, tmp_path):
    """Between two checkpoints, with the line of metrics of the last iteration."""

    def made(run: Path, *more: object) -> Engine:
        return Engine(Prototypes(), blobs(), run=run, hooks=[MetricsLog(), *more])

    made(tmp_path / "whole").train(6)
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit if how == "SIGTERM" else KeyboardInterrupt):
        made(tmp_path / "r", Interrupts(3, how)).train(6)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    again = made(tmp_path / "r")
    assert again.resume() == 3
    again.train(6)
    states = [load_checkpoint(RunFolder.open(tmp_path / name).newest()) for name in ("whole", "r")]
    assert digest({**states[0], "hooks": {}}) == digest({**states[1], "hooks": {}})
    assert (tmp_path / "r/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()


def test_without_a_run_folder_signals_act_as_usual():
    """Nothing can be saved, so nothing is delayed."""
    engine = Engine(Prototypes(), blobs(), hooks=[Interrupts(2, "SIGINT")])
    with pytest.raises(KeyboardInterrupt):
        engine.train(6)
    assert engine.iteration == 2


def test_checkpoints_are_due_by_iterations_and_by_time():
    """Writing takes at most a twentieth of the time."""
    schedule = Schedule(every=3, seconds=0.01, keep=2)
    assert [schedule.due(i) for i in (1, 2, 3)] == [False, False, True]
    time.sleep(0.02)
    assert schedule.overdue()
    schedule.written(time.monotonic() - 1.0)
    time.sleep(0.02)
    assert not schedule.overdue()
    assert not Schedule(every=3, seconds=None, keep=2).overdue()


def test_a_checkpoint_is_written_by_time(tmp_path):
    """Long before ``checkpoint_every`` iterations."""
    saved = []

    class Watch:
        @kshot.hookimpl
        def checkpoint_saved(self, iteration):
            saved.append(iteration)

    Engine(Prototypes(), blobs(), run=tmp_path / "r", hooks=[Watch()]).train(4, checkpoint_seconds=1e-9)
    assert saved[0] == 1
    with pytest.raises(kshot.errors.OptionError, match=r"checkpoint_seconds 0\.0, expected a positive"):
        Engine(Prototypes(), blobs()).train(4, checkpoint_seconds=0)


def test_two_trainings_in_one_run_folder_are_refused(tmp_path):
    """The second one writes nothing; the lock is free again when the first has ended or was killed."""
    run = tmp_path / "r"
    Engine(Prototypes(), blobs(), run=run, optimizer={"schedule": "constant"}).train(2)
    script = (
        "import sys, time, pathlib; from kshot._engine.run_lock import only_training\n"
        "with only_training(pathlib.Path(sys.argv[1])): print('locked', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", script, str(run)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "locked\n"
    second = Engine(Prototypes(), blobs(), run=run, optimizer={"schedule": "constant"})
    second.resume()
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    with pytest.raises(RunError, match="got a run that another process is training"):
        second.train(4)
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before
    holder.kill()
    holder.communicate()
    second.train(4)
    assert second.iteration == 4


def test_the_lock_is_of_a_thread_and_may_be_taken_twice_by_it(tmp_path):
    """``kshot resume`` holds it from before the checkpoint is read; the training within takes it again."""
    (tmp_path / "config.json").write_text("{}")
    refused = []

    def other() -> None:
        with contextlib.suppress(RunError), only_training(tmp_path):
            return
        refused.append(True)

    with only_training(tmp_path), only_training(tmp_path):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert refused == [True]
    other()
    assert refused == [True]


def test_incomplete_files_of_killed_processes_are_removed(tmp_path):
    """Checkpoints and metrics at once; other files, which an evaluation may be writing, when they are old."""
    run = tmp_path / "r"
    Engine(Prototypes(), blobs(), run=run, optimizer={"schedule": "constant"}).train(2)
    code = "0" * 32
    gone = [run / f"checkpoints/.00000009.pt-{code}.part", run / f".metrics.jsonl-{code}.part", run / f".a-{code}.part"]
    kept = run / f".result.json-{code}.part"
    for path in (*gone, kept):
        path.write_bytes(b"x")
    os.utime(gone[2], (0, 0))
    engine = Engine(Prototypes(), blobs(), run=run, optimizer={"schedule": "constant"})
    engine.resume()
    engine.train(3)
    assert not any(path.exists() for path in gone)
    assert kept.exists()


# --- What is only shown ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", ["closed", "full", "none"])
def test_progress_that_can_not_be_shown_does_not_end_the_training(stream, monkeypatch, caplog, tmp_path):
    """Standard error may be closed, on a full disk, or missing; one line of the log says so."""
    file = None if stream == "none" else open("/dev/full" if stream == "full" else tmp_path / "log", "w")  # noqa: SIM115
    if stream == "closed":
        file.close()
    monkeypatch.setattr(sys, "stderr", file)
    engine = Engine(Prototypes(), blobs(), hooks=[Progress(seconds=0.0)])
    engine.train(4, validate_every=2, validation_episodes=3)
    assert engine.iteration == 4
    assert len([r for r in caplog.records if "no more progress is shown" in r.message]) == (stream != "none")
    if stream == "full":
        with contextlib.suppress(OSError):
            file.close()


def test_a_full_disk_under_the_metrics_is_said_so(tmp_path):
    """With what to do; and the run goes on from its checkpoint when there is space."""
    run = tmp_path / "r"
    Engine(Prototypes(), blobs(), run=run, optimizer={"schedule": "constant"}).train(2)
    log = MetricsLog()
    engine = Engine(Prototypes(), blobs(), run=run, optimizer={"schedule": "constant"}, hooks=[log])
    engine.resume()

    class Full:
        name = "metrics.jsonl"

        def write(self, content: bytes) -> int:
            raise OSError(28, "No space left on device")

        def close(self) -> None:
            pass

    class Fills:
        @kshot.hookimpl(trylast=True)
        def run_start(self):
            log._file.close()
            log._file = Full()

    engine._hooks._manager.register(Fills())
    with pytest.raises(RunError, match=r"could not write metrics\.jsonl.*free some space, then resume"):
        engine.train(4)
    assert "permission" in advice(PermissionError(13, "Permission denied"))
    assert "file system" in advice(OSError(30, "Read-only file system"))


def test_a_partial_write_of_a_line_is_completed(tmp_path):
    """A file without a buffer may write less than it is given."""
    log, written = MetricsLog(), bytearray()

    class Slow:
        name = "metrics.jsonl"

        def write(self, content: bytes) -> int:
            written.extend(content[:3])
            return min(3, len(content))

    log._file = Slow()
    log._write({"iteration": 1, "loss": 0.5})
    assert json.loads(written) == {"iteration": 1, "loss": 0.5}
