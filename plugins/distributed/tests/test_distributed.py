"""Two processes under torchrun compute the same as one, refuse disagreements, and survive failures."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import kshot
from kshot._engine.run_folder import load_checkpoint
from kshot.errors import OptionError, Unavailable
from kshot_distributed.distributed import session, torchrun_line, transport

AT_WORK = Path(__file__).with_name("at_work.py")
spec = importlib.util.spec_from_file_location("at_work", AT_WORK)
assert spec is not None
assert spec.loader is not None
at_work: Any = importlib.util.module_from_spec(spec)
spec.loader.exec_module(at_work)


def torchrun(folder: Path, *arguments: str | Path, restarts: int = 0) -> subprocess.CompletedProcess[str]:
    """Run at_work.py in two processes, in ``folder``."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", str(restarts)]
    return subprocess.run(
        [*launcher, "--", str(AT_WORK), *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def done(place: Path) -> subprocess.CompletedProcess[str]:
    """Run all of at_work.py in two processes."""
    ended = torchrun(place, place)
    assert ended.returncode == 0, ended.stderr
    return ended


@pytest.fixture(scope="module")
def two(done: subprocess.CompletedProcess[str], place: Path) -> list[dict[str, Any]]:
    """Load the values that each of the two processes saved."""
    return [torch.load(place / f"found-{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def one() -> Iterator[dict[str, Any]]:
    """Compute the same values in one process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kshot._engine.door, "check_episode", lambda *_: None)
        threads = torch.get_num_threads()
        yield at_work.work(kshot.backend("cpu", keep_freed_memory=False))
        torch.set_num_threads(threads)


def farthest(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Return the greatest difference; the counters of batches in batch norm layers are left out."""
    assert a.keys() == b.keys()
    gaps = [(a[n].double() - b[n].double()).abs().flatten() for n in a if "num_batches" not in n]
    return float(torch.cat(gaps).max())  # NaN if one of them is NaN


# --- The same as one process ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("double", "within"), [(False, 1e-6), (True, 1e-12)], ids=["float32", "float64"])
@pytest.mark.parametrize("meta_batch", at_work.META_BATCHES)
@pytest.mark.parametrize("name", at_work.LEARNERS)
def test_two_processes_learn_what_one_learns(
    one: dict[str, Any], two: list[dict[str, Any]], name: str, meta_batch: int, double: bool, within: float
) -> None:
    """Parameters and metrics after 20 iterations are equal up to rounding.

    This holds for a loss and a pseudo-gradient, for several outer steps on a meta-batch, and for coupled tasks. Some
    meta-batches can't be shared evenly by two ranks, and some are too small for both.
    """
    case = f"{name} {meta_batch} {double}"
    first, second = (found[case] for found in two)
    assert farthest(first["state"], second["state"]) == 0
    assert farthest(first["state"], one[case]["state"]) < within
    assert first["metrics"] == second["metrics"] == pytest.approx(one[case]["metrics"], rel=10 * within)


def test_two_processes_report_the_figures_of_one(one: dict[str, Any], two: list[dict[str, Any]]) -> None:
    """The scores of all episodes are equal bit for bit, in order, on each rank."""
    for found in two:
        assert all(torch.equal(found["scores"][name], values) for name, values in one["scores"].items())


def test_results_record_how_many_processes_there_were(two: list[dict[str, Any]]) -> None:
    """The result records the backend on which each process computed, too."""
    for found in two:
        recorded = json.loads(found["recorded"])
        assert (recorded["name"], recorded["processes"], recorded["transport"]) == ("distributed", 2, "gloo")
        assert recorded["local"]["name"] == "cpu"
        assert recorded["precision"] == recorded["local"]["precision"]


def test_the_kit_s_rules_hold_in_a_world_of_two(two: list[dict[str, Any]]) -> None:
    """The rules for several processes are among those that pass on both ranks."""
    for found in two:
        assert found["kit"]
        assert [rule for rule, outcome in found["kit"].items() if not outcome.startswith("passed")] == []


def test_rank_0_alone_prints_and_nobody_warns(done: subprocess.CompletedProcess[str], place: Path) -> None:
    """Only one rank prints the result and the run, and stderr is empty, because the process group is destroyed."""
    lines = done.stdout.splitlines()
    assert [line.split()[-1] for line in (lines[0], lines[-1])] == ["inductive)", str(place / "undisturbed")]
    assert re.match(r"  with other classes than these \d+, the score could differ by ", lines[1])
    assert len(lines) == 4
    assert done.stderr == ""


# --- Refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("parameters", "learner.parameters.encoder.net.0.weight: rank 1 has '"),
        ("tasks", "tasks.seed: rank 1 has 1, rank 0 has 0"),
        ("option", "engine.meta_batch: rank 1 has 3, rank 0 has 2"),
    ],
)
def test_ranks_that_disagree_are_refused_by_rank_and_field(two: list[dict[str, Any]], what: str, said: str) -> None:
    """Both ranks raise the same error, before any compute."""
    first, second = (found["disagreements"][what] for found in two)
    assert first == second
    assert first.startswith("MisfitError: the 2 processes disagree")
    assert said in first


@pytest.fixture
def _apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """No launcher has started this process."""
    monkeypatch.setattr(dist, "is_initialized", lambda: False)
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("_apart")
def test_without_torchrun_the_error_says_the_very_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error gives the command to type next, with the user's arguments."""
    monkeypatch.setattr(sys, "argv", ["/bin/kshot", "train", "a", "b", "--backend=distributed", "--tasks.x=a b"])
    monkeypatch.setenv("RANK", "0")
    line = r"torchrun --nproc-per-node 2 -m kshot train a b --backend=distributed '--tasks\.x=a b'\n"
    with pytest.raises(Unavailable, match=rf"(?s)got no WORLD_SIZE, MASTER_ADDR, MASTER_PORT in the.*\n  {line}"):
        kshot.backend("distributed")


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["/x/kshot", "evaluate", "runs/a"], "-m kshot evaluate runs/a"),
        (["/x/kshot/__main__.py", "train", "a", "b"], "-m kshot train a b"),
        (["/x/kshot", "train", "a", "b", "--run", "x"], "-m -- kshot train a b --run x"),
        (["my script.py", "--fast"], "'my script.py' --fast"),
    ],
)
def test_the_command_is_one_that_works(argv: list[str], line: str) -> None:
    """torchrun has an option --run-path, and Python 3.11 takes --run for its abbreviation, unless '--' precedes it."""
    assert torchrun_line(argv) == f"torchrun --nproc-per-node 2 {line}"


def test_wrong_options_are_refused() -> None:
    """The error comes before the process waits for others."""
    with pytest.raises(OptionError, match=r"got timeout -1\.0, expected a positive number"):
        kshot.backend("distributed", timeout=-1)

    class Several(kshot.Cpu):
        class world:
            rank, size = 0, 2

    with pytest.raises(OptionError, match="expected one of a single process"):
        kshot.backend("distributed", local=Several())


def test_a_group_that_can_not_carry_words_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A script may have created a process group for nccl alone."""
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_backend_config", lambda: "cuda:nccl")
    with pytest.raises(OptionError, match=r"got a process group for cuda:nccl only.*make it with 'gloo'"):
        kshot.backend("distributed")


def test_what_is_on_the_gpu_travels_by_nccl() -> None:
    """Tensors on the CPU travel by gloo."""
    assert transport(torch.device("cpu")) == "gloo"
    assert transport(torch.device("cuda", 1)) == "cpu:gloo,cuda:nccl"


# --- Meeting ----------------------------------------------------------------------------------------------------------


def meet(store: Any, size: int, timeout: float = 30, late: int = -1) -> list[Any]:
    """Return for each rank the name of its session or the error that it raised; rank ``late`` starts later."""
    found: list[Any] = [None] * size

    def come(rank: int) -> None:
        time.sleep(0.3 if rank == late else 0)
        try:
            found[rank] = session(store, rank, size, timeout)
        except TimeoutError as error:
            found[rank] = str(error)

    threads = [threading.Thread(target=come, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


@pytest.mark.parametrize("late", [-1, 0, 2])
def test_processes_after_a_restart_do_not_meet_those_before_it(late: int) -> None:
    """The launcher's store still has all entries of the processes before the restart."""
    store = dist.HashStore()
    names = [meet(store, 3, late=late) for _ in range(3)]
    assert [len(set(each)) for each in names] == [1, 1, 1]
    assert len({each[0] for each in names}) == 3


def test_who_does_not_come_is_named() -> None:
    """Rank 0 names the missing rank, and the others name rank 0."""
    found = {}

    def come(rank: int) -> None:
        try:
            session(store, rank, 4, 0.3)
        except TimeoutError as error:
            found[rank] = str(error)

    for ranks, said in (((0, 2), {0: "rank 1, 3"}), ((1,), {1: "rank 0"})):
        store = dist.HashStore()
        threads = [threading.Thread(target=come, args=(rank,)) for rank in ranks]
        [thread.start() for thread in threads]
        [thread.join(60) for thread in threads]
        for rank, who in said.items():
            assert found[rank] == f"got no answer from {who}"


# --- Failures ---------------------------------------------------------------------------------------------------------


def parameters(run: Path) -> dict[str, torch.Tensor]:
    newest = sorted((run / "checkpoints").glob("*.pt"))[-1]
    state: dict[str, torch.Tensor] = load_checkpoint(newest)["learner"]
    return state


@pytest.mark.slow
@pytest.mark.usefixtures("done")
def test_a_killed_worker_is_survived_by_a_restart_from_the_last_checkpoint(tmp_path: Path, place: Path) -> None:
    """After SIGKILL within an iteration, the same command continues its run to the same bits as an undisturbed run,
    and prints the result once."""
    command = ["kshot", *at_work.UNDISTURBED, "--run=run", "--learner.fails=killed"]
    ended = torchrun(tmp_path, *command, restarts=3)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "killed").exists(), "nothing was killed"
    assert "exitcode: -9" in ended.stderr
    assert "continuing from iteration 2" in ended.stderr
    assert len(ended.stdout.splitlines()) == 4
    assert farthest(parameters(tmp_path / "run"), parameters(place / "undisturbed")) == 0
    log = "metrics.jsonl"
    assert (tmp_path / "run" / log).read_bytes() == (place / "undisturbed" / log).read_bytes()


@pytest.mark.slow
@pytest.mark.usefixtures("done")
def test_processes_that_are_asked_to_stop_save_the_same_iteration(tmp_path: Path, place: Path) -> None:
    """The signal reaches one rank only. All stop after the same iteration, and the run continues to the same bits."""
    rarely = [*at_work.UNDISTURBED, "--run=run", "--engine.checkpoint_every=1000"]
    ended = torchrun(tmp_path, "kshot", *rarely, "--learner.fails=asked", "--quiet")
    assert ended.returncode != 0
    assert "exitcode: 143" in ended.stderr or "exitcode  : 143" in ended.stderr, ended.stderr
    assert [p.name for p in (tmp_path / "run/checkpoints").glob("*.pt")] == ["00000004.pt"]
    again = torchrun(tmp_path, "kshot", "resume", "run", "--quiet")
    assert again.returncode == 0, again.stderr
    assert farthest(parameters(tmp_path / "run"), parameters(place / "undisturbed")) == 0


@pytest.mark.slow
def test_a_rank_that_raises_is_named_and_takes_the_others_with_it(tmp_path: Path) -> None:
    """They end within seconds, not after a timeout of half an hour."""
    ended = torchrun(tmp_path, "kshot", *at_work.UNDISTURBED, "--run=run", "--learner.fails=raises", "--quiet")
    assert time.time() - (tmp_path / "raises").stat().st_mtime < 30
    assert ended.returncode != 0
    assert "[rank1]: LookupError: no such thing on this rank" in ended.stderr
    assert ended.stdout == ""


@pytest.mark.slow
def test_a_rank_that_is_stuck_is_waited_for_as_long_as_the_user_says(tmp_path: Path) -> None:
    """The others give up after the timeout, and say so."""
    options = ["--backend.timeout=3", "--learner.fails=stuck", "--quiet"]
    ended = torchrun(tmp_path, "kshot", *at_work.UNDISTURBED, "--run=run", *options)
    assert time.time() - (tmp_path / "stuck").stat().st_mtime < 300  # of half an hour, the default; machines are slow
    assert ended.returncode != 0
    assert "kshot: rank 0 of 2 lost the other processes" in ended.stderr
    assert "kept the others waiting for too long" in ended.stderr


def test_the_end_waits_for_tensors_that_a_thread_still_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a gloo thread released the last reference while the process ends, the process would be aborted."""
    from kshot_distributed import distributed

    class Held:
        def __init__(self, drops_after: int) -> None:
            self.left = drops_after

        def _use_count(self) -> int:
            self.left -= 1
            return 1 if self.left < 0 else 2

    soon, never = Held(5), Held(10**9)
    monkeypatch.setattr(distributed, "HELD", [[soon]])
    distributed.leave()
    assert soon.left < 0
    monkeypatch.setattr(distributed, "HELD", [[never]])
    began = time.monotonic()
    distributed.leave()
    assert 0.4 < time.monotonic() - began < 5
