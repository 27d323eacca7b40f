"""The command line with real plugins: protonet on toy tasks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

import kshot
from kshot._engine.run_folder import load_checkpoint
from kshot.cli import main
from kshot.errors import DataError

OWN = pytest.importorskip("kshot_protonet").ProtoNet.training_defaults
pytest.importorskip("kshot_toy")
NEEDS_SINUSOID = pytest.mark.skipif(find_spec("kshot_sinusoid") is None, reason="kshot-sinusoid is not installed")

FEW = ("--backend.threads=1", "--evaluate.episodes=20", "--quiet")


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give each test its own current directory, and restore the thread count, which a run sets for the process."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def cli(*args: str) -> Result:
    return CliRunner().invoke(main, list(args))


def train(*args: str, run: str = "run", iterations: int = 6) -> Result:
    done = cli("train", "protonet", "toy", f"--run={run}", f"--iterations={iterations}", *FEW, *args)
    assert done.exit_code == 0, done.output
    return done


def parameters(run: str) -> dict[str, torch.Tensor]:
    newest = sorted(Path(run, "checkpoints").glob("*.pt"))[-1]
    found: dict[str, torch.Tensor] = load_checkpoint(newest)["learner"]
    return found


def same_parameters(first: str, second: str) -> bool:
    a, b = parameters(first), parameters(second)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def contents(run: str) -> dict[str, tuple[bytes, int]]:
    files = sorted(path for path in Path(run).rglob("*") if path.is_file())
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def results(text: str) -> list[Any]:
    found: list[Any] = json.loads(text)["results"]
    return found


def test_train_writes_a_whole_run_and_ends_with_the_result_and_where_it_is() -> None:
    """One command trains and prints the accuracy with its interval."""
    lines = train().stdout.splitlines()
    assert "% accuracy (20 episodes, test, 5-way 1-shot" in lines[0]
    assert lines[-1] == "run: run"
    assert sorted(path.name for path in Path("run").iterdir()) == [
        "checkpoints",
        "config.json",
        "inputs.pt",
        "metrics.jsonl",
        "result.json",
    ]
    written = json.loads(Path("run/result.json").read_text())
    assert len(written["results"][0]["scores"]["accuracy"]) == 20
    assert written["wall"].keys() == {"training", "evaluation"}


def test_train_without_a_folder_name_uses_learner_tasks_and_seed() -> None:
    """The default folder is as documented, and --no-run writes nothing."""
    common = ("train", "protonet", "toy", "--iterations=1", *FEW)
    assert cli(*common, "--no-run").exit_code == 0
    assert not list(Path().iterdir())
    assert cli(*common, "--seed=3").exit_code == 0
    assert Path("runs/protonet-toy-3/result.json").is_file()


def test_json_is_one_document_with_what_the_run_folder_holds() -> None:
    """Only the scores of the episodes are left out, which a program reads from result.json."""
    printed = json.loads(train("--json").stdout)
    written = json.loads(Path("run/result.json").read_text())
    assert printed["run"] == "run"
    assert printed["iterations"] == 6
    assert printed["results"][0]["mean"] == written["results"][0]["mean"]
    assert printed["results"][0]["scores"] == {}


def test_it_trains_on_the_learners_own_tasks_and_tests_on_the_users() -> None:
    """A way that a user sets is the way of the test; [training] changes the training."""
    train("--tasks.way=4", "--training.shot=2")
    plan = json.loads(Path("run/config.json").read_text())["plan"]
    assert plan["training"] == {"name": "toy", **OWN.tasks, "shot": 2}
    assert plan["tests"] == [{"name": "toy", "way": 4}]
    assert plan["own"] == dict(OWN.tasks)


def test_flags_and_recipe_give_the_same_run() -> None:
    """The same options give the same bits."""
    Path("recipe.toml").write_text(
        'title = "a recipe"\nlearner = "protonet"\nrun = "file"\nseed = 7\n'
        '[tasks]\nname = "toy"\nfeatures = 12\n[training]\nway = 6\n[optimizer]\nlr = 0.01\nschedule = "constant"\n'
        "[engine]\niterations = 5\nmeta_batch = 2\n[backend]\nthreads = 1\n[evaluate]\nepisodes = 20\n"
        "[[test]]\nshot = 1\n[[test]]\nshot = 5\n"
    )
    from_file = cli("train", "--recipe=recipe.toml", "--quiet", "--json")
    assert from_file.exit_code == 0, from_file.output
    flags = ["--tasks.features", "12", "--training.way=6", "--optimizer.lr=0.01", "--optimizer.schedule=constant"]
    from_flags = train("--seed=7", "--engine.meta_batch=2", *flags, "--json", run="flags", iterations=5)
    assert same_parameters("file", "flags")
    tested = results(from_file.stdout)
    assert [result["shape"]["shot"] for result in tested] == [1, 5]
    assert results(from_flags.stdout)[0]["mean"] == tested[0]["mean"]


def test_the_command_line_does_what_the_same_code_does() -> None:
    """It is a way to write the code, nothing more."""
    printed = results(train("--seed=3", "--json").stdout)[0]
    tasks = kshot.tasks("toy")
    training = kshot.tasks("toy", **OWN.tasks)
    learner = kshot.learner("protonet", training.spec, seed=3)
    engine = kshot.Engine(learner, training, backend=kshot.backend("cpu", threads=1), validate_on=tasks, seed=3)
    engine.train(6)
    result = engine.evaluate(20)
    assert (result.mean, result.seed) == (printed["mean"], printed["seed"])


def test_a_folder_with_anything_in_it_is_refused_and_left_alone() -> None:
    """The exit code is 6, and the error comes before any compute."""
    Path("run").mkdir()
    Path("run/mine.txt").write_text("mine")
    before = contents("run")
    done = cli("train", "protonet", "toy", "--run=run", *FEW)
    assert done.exit_code == 6
    assert "run is not empty" in done.stderr
    assert contents("run") == before


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["protonet", "toy", "--learner.widht=3"], 2, "widht: unknown option; did you mean 'width'?"),
        (["protonet", "toy", "--learner.width=wide"], 2, "width: got 'wide' (str), expected int"),
        (["protonet", "toy", "--tasks.wya=3"], 2, "wya: unknown option; did you mean 'way'?"),
        (["protonet", "toy", "--training.wya=3"], 2, "wya: unknown option; did you mean 'way'?"),
        (["protonet", "toy", "--engine.iteration=3"], 2, "iteration: unknown option; did you mean 'iterations'?"),
        (["protonet", "toy", "--engine.meta_batch=0"], 2, "engine: meta_batch: got 0 (int), expected int from 1"),
        (["protonet", "toy", "--optimizer.lr=fast"], 2, "lr: got 'fast' (str), expected float"),
        (["protonet", "toy", "--optimizer=adan"], 2, "name: got 'adan', expected one of 'adam', 'adamw'"),
        (["protonet", "toy", "--evaluate.episode=3"], 2, "episode: unknown option; did you mean 'episodes'?"),
        (["protonet", "toy", "--backend.thread=3"], 2, "thread: unknown option; did you mean 'threads'?"),
        (["protonet", "toy", "--backend=cpuu"], 4, "no backend is called 'cpuu'"),
        (["protonet", "toy", "--hooks=nothing"], 4, "no hook is called 'nothing'"),
        (["protonett", "toy"], 4, "did you mean 'protonet'?"),
        (["protonet", "toys"], 4, "did you mean 'toy'?"),
        pytest.param(["protonet", "sinusoid"], 3, "the tasks are regression", marks=NEEDS_SINUSOID),
        (["protonet", "toy", "--tasks.way=61"], 5, "got way 61, expected at most 60"),
        (["protonet", "toy", "--tasks.classes=10", "--training.way=11"], 5, "got way 11, expected at most 10"),
        (["protonet", "toy", "--tasks.classes=10", "--training.classes=8"], 5, "--training.way="),
        (["protonet", "toy", "--tasks.shot=40"], 5, "40"),
        (["protonet", "toy", "--evaluate.split=tset"], 5, "got split 'tset', expected one of"),
        (["protonet", "toy", "--engine.split=tset"], 5, "got split 'tset', expected one of"),
        (["protonet"], 2, "no tasks named"),
    ],
)
def test_bad_input_fails_before_any_compute_with_its_exit_code(args: list[str], code: int, message: str) -> None:
    """A wrong option must not show only after training: nothing is written, not even the folder."""
    done = cli("train", *args, "--run=run", "--quiet")
    assert done.exit_code == code, done.output
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not list(Path().iterdir())


def test_check_answers_without_training() -> None:
    """It prints one line for people, or a JSON document for programs."""
    done = cli("check", "protonet", "toy")
    assert done.exit_code == 0
    own = ", ".join(f"{name} {value}" for name, value in OWN.tasks.items())
    assert done.stdout == f"protonet fits toy (training defaults of the learner: {own})\n"
    fits = json.loads(cli("check", "protonet", "toy", "--json").stdout)
    assert fits["fits"] is True
    assert fits["training"]["way"] == OWN.tasks["way"]
    assert fits["tests"][0]["way"] == 5
    assert not list(Path().iterdir())


@NEEDS_SINUSOID
def test_check_gives_the_reasons_why_a_learner_does_not_fit() -> None:
    """The reasons are in the JSON document, and the exit code is 3."""
    done = cli("check", "protonet", "sinusoid", "--json")
    assert done.exit_code == 3
    assert json.loads(done.stdout)["reasons"] == ["the tasks are regression, the learner learns classification"]
    assert not list(Path().iterdir())


def test_a_warning_is_a_line_for_people_and_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line has no file and line number; warnings of other categories do not change."""

    def warn(plan: Any, **more: Any) -> Any:
        for _ in range(2):
            warnings.warn("2 files are copies", UserWarning, stacklevel=1)
        warnings.warn("old", DeprecationWarning, stacklevel=1)
        raise DataError("stop")

    monkeypatch.setattr("kshot.runs.plan.build_tasks", warn)
    with pytest.warns(DeprecationWarning, match="old") as others:
        done = cli("check", "protonet", "toy")
    assert done.stderr == "kshot: warning: 2 files are copies\nkshot: stop\n"
    assert len(others) == 1


def test_the_learner_s_own_way_of_training_is_held_to_the_data() -> None:
    """A folder of few classes trains without further options, and the run prints and records the reduced way."""
    wanted = ["protonet", "toy", "--tasks.classes=10", "--iterations=3", "--evaluate.episodes=5"]
    assert cli("check", *wanted[:3]).stdout == "protonet fits toy (training defaults of the learner: way 10, query 1)\n"
    done = cli("train", *wanted, "--run=run")
    assert done.exit_code == 0, done.output
    assert "training defaults of the learner: way 10, query 1" in done.stderr
    assert "note: training with way 10 instead of way 30, because split 'train' has no more\n" in done.stderr
    recorded = json.loads(Path("run/config.json").read_text())["plan"]
    assert recorded["training"]["way"] == recorded["own"]["way"] == 10
    done = cli("evaluate", "run")
    assert done.exit_code == 0, done.output
    assert "note:" not in done.stderr


def test_info_of_a_learner_shows_what_it_needs_and_how_it_is_trained() -> None:
    """They are the defaults of a run without options."""
    told = json.loads(cli("info", "protonet", "--json").stdout)
    assert told["needs"]["kinds"] == ["classification"]
    assert told["training"]["tasks"] == dict(OWN.tasks)
    assert "Snell" in cli("info", "protonet").stdout or "prototype" in cli("info", "protonet").stdout


def test_evaluate_gives_the_runs_own_figure_and_changes_nothing() -> None:
    """No byte and no time stamp of the run folder changes."""
    own = results(train("--json").stdout)[0]["mean"]
    before = contents("run")
    assert results(cli("evaluate", "run", "--json", "--quiet").stdout)[0]["mean"] == own
    assert contents("run") == before


def test_evaluate_takes_other_tasks_learner_options_and_episodes() -> None:
    """One training can be evaluated many times; the scores are written to --output."""
    train()
    flags = ["--tasks.shot=5", "--tasks.way", "4", "--evaluate.episodes=7", "--learner.normalisation=transductive"]
    done = cli("evaluate", "run", *flags, "--output=there.json", "--quiet")
    assert done.exit_code == 0, done.output
    assert "7 episodes, test, 4-way 5-shot" in done.stdout
    written = results(Path("there.json").read_text())[0]
    assert len(written["scores"]["accuracy"]) == 7
    assert written["learner"]["options"]["normalisation"] == "transductive"
    assert written["iteration"] == 6


def test_evaluate_refuses_sections_that_would_change_nothing() -> None:
    """Options of the optimizer have no effect on an evaluation."""
    train(iterations=1)
    done = cli("evaluate", "run", "--optimizer.lr=1")
    assert done.exit_code == 2
    assert "--tasks.NAME" in done.stderr


def test_evaluate_tests_the_best_validated_parameters() -> None:
    """The evaluation uses the best parameters, as the training did, not the last ones."""
    flags = ["--engine.validate_every=2", "--engine.validation_episodes=20", "--optimizer.lr=3", "--optimizer.warmup=0"]
    own = results(train(*flags, "--json", iterations=8).stdout)[0]
    again = results(cli("evaluate", "run", "--json", "--quiet").stdout)[0]
    best = load_checkpoint(sorted(Path("run/checkpoints").glob("*.pt"))[-1])["best"]["iteration"]
    assert best < 8, "choose a rate at which the last parameters are not the best, or this shows nothing"
    assert (own["iteration"], own["mean"]) == (best, again["mean"])
    assert again["iteration"] == best


def test_a_run_without_a_checkpoint_is_not_evaluated() -> None:
    """Otherwise an accuracy of untrained parameters would look like a result."""
    train(iterations=1)
    for path in Path("run/checkpoints").iterdir():
        path.unlink()
    done = cli("evaluate", "run", "--quiet")
    assert done.exit_code == 6
    assert "has no checkpoint yet" in done.stderr


def test_a_truncated_checkpoint_is_refused_and_nothing_overwritten() -> None:
    """Both evaluate and resume refuse it."""
    train()
    newest = sorted(Path("run/checkpoints").glob("*.pt"))[-1]
    newest.write_bytes(newest.read_bytes()[:500])
    before = contents("run")
    for command in ("evaluate", "resume"):
        done = cli(command, "run", "--quiet")
        assert done.exit_code == 6, done.output
        assert "truncated" in done.stderr
    assert contents("run") == before


def test_resuming_a_finished_run_tests_it_and_leaves_its_result() -> None:
    """Its result.json contains the time of the real training."""
    own = results(train("--json").stdout)
    before = contents("run")
    done = cli("resume", "run", "--json", "--quiet")
    assert [result["mean"] for result in results(done.stdout)] == [result["mean"] for result in own]
    assert contents("run") == before


def test_automatic_choices_are_recorded_and_taken_again() -> None:
    """A run continues as it began, whatever another machine or a newer version of the learner would choose."""
    done = cli("train", "protonet", "toy", "--run=run", "--iterations=1", "--evaluate.episodes=5", "--quiet")
    assert done.exit_code == 0, done.output
    plan = json.loads(Path("run/config.json").read_text())["plan"]
    assert plan["optimizer"]["lr"] == OWN.lr
    assert plan["optimizer"]["schedule"] == OWN.schedule
    assert plan["engine"] == {"iterations": 1, "meta_batch": 1}
    backend = plan["backend"]
    assert backend["precision"] in ("float32", "bfloat16")
    recorded = backend["threads"]
    torch.set_num_threads(recorded + 1)
    resumed = results(cli("resume", "run", "--json", "--quiet").stdout)[0]
    assert resumed["backend"]["threads"] == recorded


# --- Processes of their own


def start(*args: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "kshot", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
        # a shell's background job ignores Ctrl-C, and so would what it starts
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def run_apart(*args: str, **environment: str) -> tuple[int, str, str]:
    process = start(*args, **environment)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def wait_for_checkpoint(process: subprocess.Popen[str], run: str) -> None:
    until = time.monotonic() + 120
    while not list(Path(run, "checkpoints").glob("*.pt")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)


LONG = ("--engine.checkpoint_every=5", "--backend.threads=1", "--evaluate.episodes=20", "--quiet")


def test_a_killed_run_resumes_to_the_bits_of_an_unbroken_one() -> None:
    """After SIGKILL, which leaves no time to save, the run can be resumed."""
    process = start("train", "protonet", "toy", "--run=killed", "--iterations=400", *LONG)
    wait_for_checkpoint(process, "killed")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not Path("killed/result.json").exists(), "it was over before it could be killed"
    newest = max(int(path.stem) for path in Path("killed/checkpoints").glob("[0-9]*.pt"))
    resumed = cli("resume", "killed", "--json", "--quiet")
    assert resumed.exit_code == 0, resumed.output
    assert json.loads(Path("killed/result.json").read_text())["trained_from"] == newest > 0
    unbroken = train("--engine.checkpoint_every=5", "--json", run="unbroken", iterations=400)
    assert same_parameters("killed", "unbroken")
    assert Path("killed/metrics.jsonl").read_bytes() == Path("unbroken/metrics.jsonl").read_bytes()
    assert results(resumed.stdout)[0]["mean"] == results(unbroken.stdout)[0]["mean"]


def test_an_interrupted_run_says_how_to_go_on() -> None:
    """After Ctrl-C the exit code is 130, and there is no traceback."""
    process = start("train", "protonet", "toy", "--run=stopped", "--iterations=100000", *LONG)
    wait_for_checkpoint(process, "stopped")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "continue with: kshot resume stopped" in err
    assert "Traceback" not in err


def test_a_run_killed_before_its_first_checkpoint_resumes_at_the_beginning() -> None:
    """It has a config and perhaps metrics, but no parameters yet."""
    train(run="whole")
    train(run="killed")
    for path in Path("killed/checkpoints").iterdir():
        path.unlink()
    Path("killed/result.json").unlink()
    with Path("killed/metrics.jsonl").open("a") as file:
        file.write('{"iteration": 7, "lo')
    done = cli("resume", "killed", "--quiet")
    assert done.exit_code == 0, done.output
    assert same_parameters("whole", "killed")
    assert Path("killed/metrics.jsonl").read_bytes() == Path("whole/metrics.jsonl").read_bytes()


PLUGINS = '''
import torch
from kshot import Learner, Needs
from kshot_protonet import ProtoNet

class Needy(ProtoNet):
    """A learner that needs something that toy tasks do not have."""
    needs = Needs(kinds=("sequence",), semantics="required", unlabelled="required", external=True)

class Wrapped(torch.nn.Module):
    """Another learner, and a temperature."""
    needs = Needs(variable_way=True)

    def __init__(self, spec, inner: "Learner | str" = "protonet", temperature: float = 1.0):
        super().__init__()
        self.inner, self.temperature = inner, temperature

    def meta_gradient(self, episodes):
        return self.inner.meta_gradient(episodes)

    def adapt(self, support):
        predict = self.inner.adapt(support)
        return lambda x: predict(x) / self.temperature
'''


@pytest.fixture
def strangers(tmp_path: Path) -> dict[str, str]:
    """Make an installed distribution of unusual plugins, and return an environment in which it is visible."""
    site = tmp_path / "site"
    information = site / "strange-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: strange\nVersion: 1.0\n")
    lines = """
        [kshot.learners]
        needy = strange:Needy
        wrapped = strange:Wrapped
        stale = not_there:Learner
        raising = raising:Learner
    """
    (information / "entry_points.txt").write_text(textwrap.dedent(lines))
    (site / "strange.py").write_text(PLUGINS)
    (site / "raising.py").write_text("raise RuntimeError('no good')\n")
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))}


def test_check_says_every_reason_why_a_learner_does_not_fit(strangers: dict[str, str]) -> None:
    """All at once, and the plain text has them too."""
    code, out, _ = run_apart("check", "needy", "toy", "--json", **strangers)
    assert code == 3
    reasons = json.loads(out)["reasons"]
    assert [reason.partition(",")[0] for reason in reasons] == [
        "the tasks are classification",
        "the learner requires unlabelled",
        "the learner requires semantics",
        "the learner requires external examples",
    ]
    code, _, err = run_apart("check", "needy", "toy", **strangers)
    assert code == 3
    assert all(f"  - {reason}" in err for reason in reasons)


def test_a_learner_in_a_learner_is_named_and_set_by_flags(strangers: dict[str, str]) -> None:
    """And its options are recorded so that a run can be taken up."""
    flags = ["--learner.inner=protonet", "--learner.inner.width=8", "--learner.temperature=2"]
    code, _, err = run_apart("train", "wrapped", "toy", "--run=run", "--iterations=2", *flags, *FEW, **strangers)
    assert code == 0, err
    plan = json.loads(Path("run/config.json").read_text())["plan"]
    assert plan["learner"] == {"name": "wrapped", "inner": {"name": "protonet", "width": 8}, "temperature": 2.0}
    code, _, err = run_apart("resume", "run", "--quiet", **strangers)
    assert code == 0, err


def test_list_and_doctor_say_why_a_plugin_is_broken(strangers: dict[str, str]) -> None:
    """List sees what can be told without importing; doctor imports, shows the traceback and exits with 4."""
    code, out, _ = run_apart("list", **strangers)
    assert code == 0
    lines = out.splitlines()
    stale = next(i for i, line in enumerate(lines) if line.startswith("stale "))
    assert lines[stale].split()[3] == "broken"
    assert "the module not_there does not exist" in lines[stale + 1]
    code, out, _ = run_apart("doctor", **strangers)
    assert code == 4
    assert "raising (learners, strange 1.0) is broken" in out
    assert "RuntimeError: no good" in out
    assert "Traceback" in out
    code, out, _ = run_apart("doctor", "--json", **strangers)
    report = json.loads(out)
    assert (code, report["ok"]) == (4, False)
    broken = {plugin["name"] for plugin in report["plugins"] if plugin["state"] == "broken"}
    assert broken >= {"stale", "raising"}
