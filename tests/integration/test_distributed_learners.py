"""Two processes train every learner to the same parameters as one does, from code and from the command line."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import kshot._engine.door
from kshot._engine.run_folder import load_checkpoint
from kshot.cli import main

pytest.importorskip("kshot_distributed")

AT_WORK = Path(__file__).with_name("learners_at_work.py")
spec = importlib.util.spec_from_file_location("learners_at_work", AT_WORK)
assert spec is not None
assert spec.loader is not None
at_work: Any = importlib.util.module_from_spec(spec)
spec.loader.exec_module(at_work)


def torchrun(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run learners_at_work.py in two processes."""
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *command],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


@pytest.fixture(scope="module")
def one() -> Iterator[dict[str, Any]]:
    """Return the results of training in one process."""
    with pytest.MonkeyPatch.context() as patch:
        module = kshot._engine.door
        patch.setattr(module, "check_episode", module.check_episode)  # restores what at_work replaces
        threads = torch.get_num_threads()
        yield at_work.train_all(kshot.backend("cpu"))
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Return the results of each of two processes."""
    folder = tmp_path_factory.mktemp("two")
    done = torchrun(folder, "--", str(AT_WORK), str(folder))
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def farthest(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The greatest difference; by how many batches a batch norm layer has seen nothing goes."""
    assert a.keys() == b.keys()
    gaps = [(a[n].double() - b[n].double()).abs().flatten() for n in a if "num_batches" not in n]
    return float(torch.cat(gaps).max())  # NaN where one of them is


@pytest.mark.slow
@pytest.mark.parametrize(("double", "within"), [(False, 1e-6), (True, 1e-9)], ids=["float32", "float64"])
@pytest.mark.parametrize("meta_batch", at_work.META_BATCHES)
@pytest.mark.parametrize("name", at_work.CASES)
def test_two_processes_train_a_learner_as_one_does(
    one: dict[str, Any], two: list[dict[str, Any]], name: str, meta_batch: int, double: bool, within: float
) -> None:
    """Whatever its meta-gradient is made of; after 20 iterations, in which it has moved a hundred times as far."""
    if not at_work.installed(at_work.CASES[name]):
        pytest.skip(f"{name}: its plugins are not all installed")
    case = f"{name}, {meta_batch}, {double}"
    alone, (first, second) = one[case], [found[case] for found in two]
    assert farthest(alone["before"], alone["after"]) > 100 * within
    assert farthest(first["after"], second["after"]) == 0
    assert farthest(first["after"], alone["after"]) < within
    assert first["metrics"] == second["metrics"] == pytest.approx(alone["metrics"], rel=1e-5, abs=1e-6)


# --- The command line -------------------------------------------------------------------------------------------------

FEW = ("protonet", "toy", "--engine.meta_batch=4", "--iterations=6", "--evaluate.episodes=20")


@pytest.fixture
def _toy() -> None:
    pytest.importorskip("kshot_protonet")
    pytest.importorskip("kshot_toy")


def launched_as(monkeypatch: pytest.MonkeyPatch, job: str, **more: str) -> None:
    """Set the environment variables that torchrun sets for a single process."""
    for name, value in {"TORCHELASTIC_RUN_ID": job, "RANK": "0", "WORLD_SIZE": "1", **more}.items():
        monkeypatch.setenv(name, value)


def cli(*arguments: str) -> Any:
    return CliRunner().invoke(main, list(arguments))


@pytest.mark.slow
@pytest.mark.usefixtures("_toy")
def test_the_command_line_in_two_processes_does_what_it_does_in_one(tmp_path: Path) -> None:
    """Train, test again, check: rank 0 alone prints and writes; and a bad option is told, with the exit code of bad
    options."""
    run = ["-m", "--", "kshot"]
    done = torchrun(tmp_path, *run, "train", *FEW, "--backend=distributed", "--run=two", "--json", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)["results"][0]
    assert told["backend"]["processes"] == 2
    alone = cli("train", *FEW, f"--run={tmp_path / 'one'}", "--json", "--quiet")
    assert json.loads(alone.stdout)["results"][0]["mean"] == pytest.approx(told["mean"], abs=1e-3)
    newest = [load_checkpoint(tmp_path / name / "checkpoints" / "00000006.pt")["learner"] for name in ("one", "two")]
    last = max(n for n in newest[0] if n.endswith("bias"))  # shifts all embeddings alike: Adam moves it by noise
    assert farthest(*({n: t for n, t in state.items() if n != last} for state in newest)) < 1e-5
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == [
        "checkpoints",
        "config.json",
        "inputs.pt",
        "metrics.jsonl",
        "result.json",
    ]
    again = torchrun(tmp_path, *run, "evaluate", "two", "--json", "--quiet")
    assert json.loads(again.stdout)["results"][0]["mean"] == told["mean"]
    elsewhere = cli("evaluate", str(tmp_path / "two"), "--backend.name=cpu", "--json", "--quiet")
    assert json.loads(elsewhere.stdout)["results"][0]["mean"] == told["mean"]


@pytest.mark.slow
@pytest.mark.usefixtures("_toy")
def test_tasks_that_one_rank_does_not_have_end_both(tmp_path: Path) -> None:
    """The rank that has the error reports it, and nothing is written."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os\nif os.environ.get('RANK') == '1':\n    os.environ['KSHOT_DISABLE'] = 'toy'\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
        done = torchrun(tmp_path, "-m", "--", "kshot", "train", *FEW, "--backend=distributed", "--run=run", "--quiet")
    assert done.returncode != 0
    assert "kshot: rank 1: tasks 'toy'" in done.stderr
    assert "disabled" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("_toy")
def test_a_restarted_launch_goes_on_with_its_own_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """torchrun restarts a group by the command that began; it must not find its own folder 'not empty'."""
    run, whole = f"--run={tmp_path / 'run'}", f"--run={tmp_path / 'whole'}"
    launched_as(monkeypatch, "job-1")
    often = ("--engine.checkpoint_every=2",)
    assert cli("train", *FEW, whole, *often, "--quiet").exit_code == 0
    assert cli("train", *FEW, run, *often, "--quiet").exit_code == 0
    checkpoints = tmp_path / "run" / "checkpoints"
    (checkpoints / "00000006.pt").unlink()
    (tmp_path / "run" / "result.json").unlink()
    again = cli("train", *FEW, run, *often)
    assert again.exit_code == 0, again.output
    assert "continuing from iteration 4" in again.stderr
    ends = [load_checkpoint(tmp_path / name / "checkpoints" / "00000006.pt")["learner"] for name in ("run", "whole")]
    assert farthest(*ends) == 0
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


@pytest.mark.usefixtures("_toy")
def test_another_launch_is_refused_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As any command is; and the same launch with other options."""
    run = f"--run={tmp_path / 'run'}"
    launched_as(monkeypatch, "job-1")
    assert cli("train", *FEW, run, "--quiet").exit_code == 0
    other = cli("train", *FEW, run, "--quiet", "--learner.width=8")
    assert other.exit_code == 6
    assert "was begun by another command" in other.stderr
    assert "learner: the run has {'name': 'protonet'}, this command {'name': 'protonet', 'width': 8}" in other.stderr
    launched_as(monkeypatch, "job-2")
    assert "is not empty" in cli("train", *FEW, run, "--quiet").stderr
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    assert cli("train", *FEW, run, "--quiet").exit_code == 6


@pytest.mark.usefixtures("_toy")
def test_a_launch_without_a_name_is_known_by_its_launcher(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An older torchrun calls every job 'none', yet another torchrun is another launch."""
    run = f"--run={tmp_path / 'run'}"
    launched_as(monkeypatch, "none")
    assert cli("train", *FEW, run, "--quiet").exit_code == 0
    assert cli("train", *FEW, run, "--quiet").exit_code == 0
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert cli("train", *FEW, run, "--quiet").exit_code == 6


def test_coupled_tasks_that_are_not_computed_whole_are_refused() -> None:
    """``kshot check`` refuses them with the reason, because chunks would change the method."""
    pytest.importorskip("kshot_gradient_agreement")
    pytest.importorskip("kshot_reptile")
    pytest.importorskip("kshot_sinusoid")
    flags = ["--learner.inner=reptile", "--engine.meta_batch=4", "--engine.chunk=2"]
    done = cli("check", "gradient-agreement", "sinusoid", *flags)
    assert done.exit_code == 3
    assert "couples the tasks of a meta-batch, so its 4 tasks can't be computed in chunks of 2" in done.stderr


@pytest.mark.usefixtures("_toy")
def test_a_backend_of_one_process_is_refused_where_several_were_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise each process would train alone, and all would write to one folder."""
    launched_as(monkeypatch, "job-1", WORLD_SIZE="2")
    done = cli("train", *FEW, "--no-run", "--quiet")
    assert done.exit_code == 2
    assert "got 2 processes and backend" in done.stderr
    assert "--backend=distributed --backend.local=cpu" in done.stderr
