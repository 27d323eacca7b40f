"""Runs on disk: never half-written, resumed to the bit, refused with a reason when they can't be."""

import contextlib
import errno
import multiprocessing
import os
import random
import resource
import runpy
import signal
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import kshot
from kshot import ClassificationTasks, Engine, Pool, Training
from kshot._engine.builtin_hooks import cut_back
from kshot._engine.run_folder import RunFolder, digest, write_atomically
from kshot.errors import RunError
from kshot.run import load_checkpoint, save_checkpoint

ITERATIONS = 300


class Tiny(nn.Module):
    """Dropout, batch norm and Adam: everything that has state or chance."""

    needs = kshot.Needs(variable_way=True)
    training_defaults = Training(lr=0.01, schedule="cosine", meta_batch=2)

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        with kshot.randomness.seeded("tiny"):
            net = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.3))
        self.encoder = kshot.nn.Encoder(net)

    def meta_gradient(self, episodes):
        s, q = episodes.support, episodes.query
        z = self.encoder(torch.cat([s.x, q.x], 1))
        means = kshot.functional.class_means(z[:, : s.x.shape[1]], s.y, s.way)
        logits = kshot.functional.prototypical_logits(z[:, s.x.shape[1] :], means)
        loss = F.cross_entropy(logits.flatten(0, 1), q.y.flatten())
        loss.backward()
        return {"loss": loss.detach()}

    def adapt(self, support):
        means = kshot.functional.class_means(self.encoder(support.x), support.y, support.way)
        return lambda x: kshot.functional.prototypical_logits(self.encoder(x), means)


def tasks(seed: int = 0) -> ClassificationTasks:
    x = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
    pools = {s: Pool.of(x, np.repeat(np.arange(20), 10)) for s in ("train", "val", "test")}
    return ClassificationTasks(pools, way=3, shot=1, query=3, seed=seed)


CONSTANT = {"schedule": "constant"}
"""A schedule under which a training may go on for longer."""


def engine(run: Path | None, **options: object) -> Engine:
    return Engine(Tiny(), tasks(), run=run, backend=kshot.Cpu(threads=1), **options)  # type: ignore[arg-type]


def go_on(run: str) -> None:
    """What a user does after a kill: train anew, or resume where there is a run."""
    e = engine(Path(run))
    if Path(run).exists():
        e.resume()
    e.train(ITERATIONS, checkpoint_every=7, validate_every=20, validation_episodes=5)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("unbroken") / "run"
    go_on(str(run))
    return run


def stamp(run: Path) -> tuple[int, int]:
    """Changes whenever the run writes a line."""
    with contextlib.suppress(FileNotFoundError):
        found = (run / "metrics.jsonl").stat()
        return found.st_size, found.st_mtime_ns
    return 0, 0


def kill_and_resume(run: Path, moment: random.Random, kills: int) -> tuple[int, int]:
    """Run to the end with SIGKILLs at random instants -> how many struck, and how many of them a run with a checkpoint.

    Most strike at a random instant after the process has begun to train, every fourth at one after its start.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "torch", "kshot._engine.engine", "numpy"])
    struck = resumed = 0
    for kill in range(kills):
        # by path, since test files are not importable by name
        process = context.Process(target=runpy.run_path, args=(__file__, {"RUN": str(run)}))
        before = stamp(run)
        process.start()
        while kill % 4 != 3 and stamp(run) == before and process.is_alive():
            time.sleep(0.001)
        process.join(moment.uniform(0, 0.25))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            struck += 1
            resumed += run.exists() and bool(RunFolder.open(run).checkpoints())
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        if process.exitcode == 0:
            return struck, resumed
    go_on(str(run))
    return struck, resumed


def same_run(a: Path, b: Path) -> None:
    """Bit-identical parameters, optimizer state and metrics, and nothing left lying about."""
    newest = [RunFolder.open(r).checkpoints()[-1] for r in (a, b)]
    states = [load_checkpoint(p) for p in newest]
    assert digest(states[0]) == digest(states[1])
    assert (a / "metrics.jsonl").read_bytes() == (b / "metrics.jsonl").read_bytes()


def test_twenty_kills_change_no_bit(unbroken, tmp_path):
    """SIGKILL at random instants, and resume: parameters, optimizer and metrics are those of the unbroken run."""
    moment, struck, resumed, runs = random.Random(99), 0, 0, 0
    while struck < 20:
        run = tmp_path / f"run{runs}"
        here, again = kill_and_resume(run, moment, kills=20 - struck)
        struck, resumed, runs = struck + here, resumed + again, runs + 1
        same_run(unbroken, run)
    assert struck == 20
    assert resumed >= 10


def test_a_resumed_run_goes_on_where_it_was(unbroken, tmp_path):
    """Stopped in good order after 50 iterations, then resumed."""
    first = engine(tmp_path / "run", optimizer=CONSTANT)
    first.train(50, checkpoint_every=7, validate_every=20, validation_episodes=5)
    assert first.iteration == 50
    second = engine(tmp_path / "run", optimizer=CONSTANT)
    assert second.resume() == 50
    second.train(60, checkpoint_every=7, validate_every=20, validation_episodes=5)
    assert second.iteration == 60


def test_a_truncated_checkpoint_is_refused_and_nothing_changes(tmp_path):
    """At any length; the folder stays as it is, an earlier checkpoint still resumes."""
    run = tmp_path / "run"
    engine(run).train(20, checkpoint_every=10)
    earlier, newest = RunFolder.open(run).checkpoints()
    whole = newest.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        newest.write_bytes(whole[:length])
        before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
        with pytest.raises(RunError, match="truncated, corrupt or not a checkpoint"):
            engine(run).resume()
        assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before
    assert engine(run).resume(earlier) == 10


def test_a_changed_number_in_a_checkpoint_is_noticed(tmp_path):
    """The digest covers every tensor: one flipped bit in a stored parameter."""
    path = tmp_path / "c.pt"
    save_checkpoint(path, {"iteration": 3, "learner": {"w": torch.zeros(64)}})
    with zipfile.ZipFile(path) as z:
        contents = {i: z.read(i) for i in z.namelist()}
    with zipfile.ZipFile(path, "w") as z:
        for name, data in contents.items():
            z.writestr(name, (b"\1" + data[1:]) if "/data/" in name else data)
    with pytest.raises(RunError, match="corrupt"):
        load_checkpoint(path)


def test_foreign_and_newer_checkpoints_are_refused(tmp_path):
    """Refuse a torch file of another program, a checkpoint of a newer kshot, and a checkpoint of another run."""
    path = tmp_path / "c.pt"
    torch.save({"w": torch.zeros(2)}, path)
    with pytest.raises(RunError, match="not a kshot checkpoint"):
        load_checkpoint(path)
    torch.save({"format": "kshot-checkpoint", "version": 2, "state": {}}, path)
    with pytest.raises(RunError, match=r"got checkpoint format 2, expected at most 1.*pip install -U kshot"):
        load_checkpoint(path)
    with pytest.raises(RunError, match="there is no such checkpoint"):
        load_checkpoint(tmp_path / "none.pt")
    run = tmp_path / "run"
    engine(run).train(4)
    other = Engine(Tiny(width=9), tasks(seed=5), run=run)
    with pytest.raises(RunError, match="another run") as caught:
        other.resume()
    assert "tasks_seed: the checkpoint has 0, this engine 5" in str(caught.value)
    assert "parameters" in str(caught.value)


def test_checkpoints_execute_nothing(tmp_path):
    """A pickle that would run code is refused, not run."""

    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"format": "kshot-checkpoint", "version": 1, "state": Bomb()}, tmp_path / "c.pt")
    with pytest.raises(RunError):
        load_checkpoint(tmp_path / "c.pt")
    assert not (tmp_path / "ran").exists()


def test_a_full_disk_loses_no_earlier_checkpoint(tmp_path):
    """The limit on file sizes stands in for a full disk: real writes really fail."""
    run = tmp_path / "run"
    engine(run, optimizer=CONSTANT).train(20, checkpoint_every=10)
    before = {p.name: p.read_bytes() for p in (run / "checkpoints").iterdir()}
    e = engine(run, optimizer=CONSTANT)
    e.resume()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, hard))
    try:
        with pytest.raises(RunError, match="what was there before is unchanged"):
            e.train(30, checkpoint_every=10)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert {p.name: p.read_bytes() for p in (run / "checkpoints").iterdir()} == before
    again = engine(run, optimizer=CONSTANT)
    assert again.resume() == 20
    again.train(30, checkpoint_every=10)


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    """Whatever the writer raises."""
    path = tmp_path / "f"
    path.write_bytes(b"old")

    def fails(file) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(RunError, match="No space left"):
        write_atomically(path, fails)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["f"]


def test_metrics_are_cut_back_to_the_checkpoint(tmp_path):
    """Later lines and a half-written last one go; a whole file is not touched."""
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"iteration": 1}\n{"iteration": 2}\n{"iteration": 3}\n{"itera')
    cut_back(path, 2)
    assert path.read_bytes() == b'{"iteration": 1}\n{"iteration": 2}\n'
    stamp = path.stat().st_mtime_ns
    time.sleep(0.01)
    cut_back(path, 2)
    assert path.stat().st_mtime_ns == stamp


def test_a_run_begins_from_another_runs_parameters(tmp_path):
    """``init_from`` takes parameters only; iterations start at 0; the config says from where."""
    engine(tmp_path / "a").train(10)
    b = engine(tmp_path / "b")
    inherited = b.init_from(tmp_path / "a")
    trained = load_checkpoint(RunFolder.open(tmp_path / "a").checkpoints()[-1])["learner"]
    assert all(torch.equal(trained[n], t) for n, t in b.learner.state_dict().items())
    assert b.iteration == 0
    assert inherited.taken == tuple(trained)
    assert str(inherited) == f"starting from {tmp_path / 'a'} after 10 iterations: 7 of 7 tensors"
    b.train(1)
    assert RunFolder.open(tmp_path / "b").config["init_from"] == inherited.to_dict()
    with pytest.raises(RunError, match="got 1 iterations taken already"):
        b.init_from(tmp_path / "a")


class TwoStage(Tiny):
    """Tiny with a part of its own, and the running mean under another shape."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.encoder.net[1].running_mean = torch.full((1, 8), 3.0)


def test_a_second_stage_takes_what_agrees_and_says_what_stayed(tmp_path):
    """Another name or another shape stays as initialised; nothing is silently left out."""
    engine(tmp_path / "a").train(10)
    second = Engine(TwoStage(), tasks())
    inherited = second.init_from(tmp_path / "a")
    trained = load_checkpoint(RunFolder.open(tmp_path / "a").checkpoints()[-1])["learner"]
    now = second.learner.state_dict()
    apart = {"scale", "encoder.net.1.running_mean"}
    assert set(inherited.taken) == set(now) - apart
    assert all(torch.equal(trained[n], now[n]) for n in inherited.taken)
    assert float(now["scale"]) == 2.0
    assert now["encoder.net.1.running_mean"].tolist() == [[3.0] * 8]
    assert inherited.initialised == ("scale", "encoder.net.1.running_mean ([8] there, [1, 8] here)")
    assert "as initialised: scale, encoder.net.1.running_mean ([8] there, [1, 8] here)" in str(inherited)
    Engine(second.learner, tasks()).save(tmp_path / "second.pt")
    assert engine(None).init_from(tmp_path / "second.pt").unused == ("scale",)


class Doubling(Tiny):
    """Tiny, which takes the weights of another run times two."""

    def inherited(self, theirs):
        return {name: 2 * t if t.is_floating_point() else t for name, t in theirs.items() if "bias" not in name}


def test_a_learner_may_change_what_it_inherits(tmp_path):
    """Such as the rows of its classes. What it leaves out stays as initialised, and the other run's file is kept."""
    engine(tmp_path / "a").train(10)
    second = Engine(Doubling(), tasks())
    inherited = second.init_from(tmp_path / "a")
    trained = load_checkpoint(RunFolder.open(tmp_path / "a").checkpoints()[-1])["learner"]
    now = second.learner.state_dict()
    assert torch.equal(now["encoder.net.0.weight"], 2 * trained["encoder.net.0.weight"])
    assert set(inherited.initialised) == {name for name in now if "bias" in name} != set()


def test_a_run_that_has_nothing_in_common_is_refused(tmp_path):
    """A run without matching parameters is refused, even if a counter of batches matches; the learner is unchanged."""
    engine(tmp_path / "a").train(10)
    other = Engine(Tiny(width=3), tasks())
    before = {n: t.clone() for n, t in other.learner.state_dict().items()}
    with pytest.raises(RunError, match=r"none of its parameters matches.*encoder\.net\.0\.weight \[8, 4\]"):
        other.init_from(tmp_path / "a")
    assert all(torch.equal(before[n], t) for n, t in other.learner.state_dict().items())
    with pytest.raises(RunError, match="is not a run folder"):
        other.init_from(tmp_path)
    with pytest.raises(RunError, match="no such run or checkpoint to start from; train it first"):
        other.init_from(tmp_path / "b")


def test_the_best_validated_parameters_are_taken(tmp_path):
    """A run with validation ends with its best validated parameters, as ``evaluate`` uses them."""
    a = engine(tmp_path / "a")
    a.train(20, validate_every=5, validation_episodes=5)
    a.best.iteration = 15
    marked = {n: torch.full_like(t, 7) for n, t in a.learner.state_dict().items()}
    a.best.parameters = marked
    a.save(tmp_path / "marked.pt")
    b = engine(None)
    inherited = b.init_from(tmp_path / "marked.pt")
    assert inherited.iteration == 15
    assert all(torch.equal(marked[n], t) for n, t in b.learner.state_dict().items())


def test_resuming_what_is_no_run_is_refused(tmp_path):
    """Without a folder, in an empty one, in a foreign one."""
    with pytest.raises(RunError, match="no run folder"):
        engine(None).resume()
    with pytest.raises(RunError, match=r"it has no config\.json"):
        engine(tmp_path).resume()
    assert list(tmp_path.iterdir()) == []


if "RUN" in globals():
    go_on(globals()["RUN"])


def test_a_digest_sees_order_names_types_and_shapes():
    """Two states that differ in any of them are not the same."""
    a, b = torch.arange(4.0), torch.arange(4.0) + 1
    states = [
        [a, b],
        [b, a],
        {"x": a, "y": b},
        {"x": b, "y": a},
        {"x": a, "z": b},
        [a.reshape(2, 2), b],
        [a.view(torch.int32), b],
        [[a], b],
        [1, 2],
        [2, 1],
        ["1", "2"],
    ]
    assert len({digest(state) for state in states}) == len(states)
    assert digest([a, b]) == digest([a.clone(), b.clone()])


def test_the_newest_checkpoint_is_that_of_the_greatest_number(tmp_path):
    """However its number is written."""
    e = engine(tmp_path / "r")
    e.train(2)
    for name in ("9", "10", "0000000100", "\u00b2", "20-copy"):
        e.save(tmp_path / f"r/checkpoints/{name}.pt")
    folder = RunFolder.open(tmp_path / "r")
    assert [path.stem for path in folder.checkpoints()] == ["00000002", "9", "10", "0000000100"]
    assert folder.newest() == tmp_path / "r/checkpoints/0000000100.pt"


def test_a_folder_with_anything_in_it_is_not_taken(tmp_path):
    """Nor a file; an empty folder is."""
    (tmp_path / "r").mkdir()
    (tmp_path / "r/notes.txt").write_text("mine")
    with pytest.raises(RunError, match="is not empty"):
        engine(tmp_path / "r").train(1)
    with pytest.raises(RunError, match="is not empty"):
        engine(tmp_path / "r/notes.txt").train(1)
    assert [path.name for path in (tmp_path / "r").iterdir()] == ["notes.txt"]
    (tmp_path / "empty").mkdir()
    engine(tmp_path / "empty").train(1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"meta_batch": 4}, "meta_batch: the checkpoint has 2, this engine 4"),
        ({"seed": 3}, "seed: the checkpoint has 0, this engine 3"),
        ({"optimizer": {**CONSTANT, "lr": 0.5}}, "optimizer: the checkpoint has"),
    ],
)
def test_a_training_with_other_options_does_not_go_on_from_a_checkpoint(options, said, tmp_path):
    """Nothing of it is loaded, and the message names what differs."""
    first = engine(None, optimizer=CONSTANT)
    first.train(1)
    path = first.save(tmp_path / "c.pt")
    other = engine(None, **{"optimizer": CONSTANT, **options})
    before = digest(other.learner.state_dict())
    with pytest.raises(RunError, match=said):
        other.resume(path)
    assert digest(other.learner.state_dict()) == before


def test_a_training_on_other_data_does_not_go_on_from_a_checkpoint(tmp_path):
    """The same shapes and seeds, but other numbers."""
    first = engine(None)
    first.train(1)
    path = first.save(tmp_path / "c.pt")
    changed = tasks()
    changed.fingerprint = "another"
    with pytest.raises(RunError, match="data: the checkpoint has"):
        Engine(Tiny(), changed).resume(path)
