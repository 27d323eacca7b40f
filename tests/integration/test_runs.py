"""A run is one thing, whoever made it: the command line and Python do the same, by the same code."""

from __future__ import annotations

import csv
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

import kshot
from kshot._engine.run_folder import RunFolder, load_checkpoint
from kshot.cli import main
from kshot.errors import DataError, OptionError, RunError

NETS = """
import kshot
from torch import nn

def tiny(spec: kshot.TaskSpec, width: int = 8) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(spec.input_shape[0], width))

def unannotated(spec):
    return nn.Linear(spec.input_shape[0], 8)

class Wide(nn.Linear):
    def __init__(self, spec: kshot.TaskSpec) -> None:
        super().__init__(spec.input_shape[0], 12)

shared = nn.Linear(20, 4)
"""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def nets(tmp_path: Path) -> Any:
    """A folder with a module of the user's; nothing of it stays imported."""
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "usersnets.py").write_text(NETS)
    yield folder
    sys.modules.pop("usersnets", None)


def cli(*args: object, code: int = 0) -> Result:
    done = CliRunner().invoke(main, list(map(str, args)), catch_exceptions=False)
    assert done.exit_code == code, done.output
    return done


def parameters(run: str | Path) -> dict[str, torch.Tensor]:
    path = RunFolder.open(run).newest()
    assert path is not None
    state: dict[str, torch.Tensor] = load_checkpoint(path)["learner"]
    return state


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


KINDS: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    ("protonet", "toy", {"width": 8}, {}),
    ("maml", "sinusoid", {}, {}),
    ("ntm", "copy", {}, {"bits": 3, "length": (1, 2)}),
    ("maml-rl", "bandits", {}, {}),
    ("l2l", "quadratics", {}, {}),
]
"""One learner of each kind of tasks, and options."""


def flags(section: str, options: dict[str, Any]) -> list[str]:
    return [
        f"--{section}.{name}={list(value) if isinstance(value, tuple) else value}" for name, value in options.items()
    ]


@pytest.mark.parametrize(
    ("learner", "tasks", "of_learner", "of_tasks"), KINDS, ids=lambda v: v if isinstance(v, str) else ""
)
def test_python_and_the_command_line_train_to_the_same_parameters(
    learner: str, tasks: str, of_learner: dict[str, Any], of_tasks: dict[str, Any]
) -> None:
    """To the bit, with the same result and the same record of how to build the run again."""
    few = ["--iterations=2", "--evaluate.episodes=3", "--seed=3", "--engine.meta_batch=2", "--quiet"]
    cli("train", learner, tasks, *flags("learner", of_learner), *flags("tasks", of_tasks), *few, "--run=command")
    run = kshot.runs.train(
        {"name": learner, **of_learner},
        {"name": tasks, **of_tasks},
        iterations=2,
        evaluate={"episodes": 3},
        engine={"meta_batch": 2},
        seed=3,
        run="python",
        quiet=True,
    )
    assert same(parameters("command"), parameters("python"))
    configs = [RunFolder.open(folder).config for folder in ("command", "python")]
    assert configs[0]["plan"] == configs[1]["plan"]
    theirs = kshot.Result.from_json(Path("command/result.json").read_text())
    assert np.array_equal(theirs.scores[theirs.headline], run.result.scores[theirs.headline], equal_nan=True)
    assert (theirs.seed, theirs.learner_seed) == (3, 3)


def test_an_engine_made_by_name_can_be_used_by_every_command() -> None:
    """The lower rung writes what the higher one does: plan, inputs, and after an evaluation its result."""
    tasks = kshot.tasks("toy", way=3)
    engine = kshot.Engine(kshot.learner("protonet", tasks.spec, width=8, seed=2), tasks, run="run")
    engine.train(4, checkpoint_every=2)
    assert not Path("run/result.json").exists()
    result = engine.evaluate(episodes=20)
    written = kshot.Result.from_json(Path("run/result.json").read_text())
    assert np.array_equal(written.scores["accuracy"], result.scores["accuracy"])
    assert (written.seed, written.learner_seed) == (2, 2), "one seed serves both"
    again = json.loads(cli("evaluate", "run", "--evaluate.episodes=20", "--json").stdout)
    assert again["results"][0]["mean"] == result.mean
    engine.evaluate(episodes=20)
    engine.evaluate(episodes=20, split="val")
    splits = [r["split"] for r in json.loads(Path("run/result.json").read_text())["results"]]
    assert splits == ["test", "val"], "the same evaluation again takes the place of the first"
    assert kshot.Result.from_json(Path("run/result.json").read_text(), test=1).split == "val"
    with pytest.raises(DataError, match="got a run with 2 tests, expected one; choose it by test=0"):
        kshot.Result.from_json(Path("run/result.json").read_text())
    model = kshot.Trained.of_run("run")
    assert same(dict(model.learner.state_dict()), parameters("run"))
    Path("run/checkpoints/00000004.pt").unlink()
    cli("resume", "run", "--quiet")
    assert same(parameters("run"), dict(engine.learner.state_dict()))


def test_two_seeds_are_told_apart() -> None:
    """The initialisation may have a separate seed."""
    few = {"iterations": 2, "evaluate": {"episodes": 3}, "quiet": True}
    kshot.runs.train("protonet", "toy", seed=1, learner_seed=5, run="both", **few)
    config = RunFolder.open("both").config
    assert (config["seed"], config["learner_seed"]) == (1, 5)
    cli(
        "train", "protonet", "toy", "--seed=1", "--learner-seed=5", "--iterations=2", "--evaluate.episodes=3", "--run=c"
    )
    assert same(parameters("both"), parameters("c"))
    assert not same(
        parameters("both"), parameters(kshot.runs.train("protonet", "toy", seed=1, run="one", **few).folder or "")
    )


# --- Networks named by an import path --------------------------------------------------------------------------------


def test_a_network_is_named_by_an_import_path_in_code_on_the_command_line_and_in_a_recipe(nets: Path) -> None:
    """And recorded, so that the run can be built again."""
    few = ["--iterations=2", "--evaluate.episodes=3", "--quiet"]
    cli("train", "protonet", "toy", "--learner.encoder=usersnets:tiny", f"--import-from={nets}", *few, "--run=command")
    sys.modules.pop("usersnets")
    kshot.runs.train(
        {"name": "protonet", "encoder": "usersnets:tiny"},
        "toy",
        iterations=2,
        evaluate={"episodes": 3},
        run="python",
        quiet=True,
        import_from=nets,
    )
    sys.modules.pop("usersnets")
    Path("recipe.toml").write_text(
        'learner = {name = "protonet", encoder = {name = "usersnets:tiny", width = 8}}\ntasks = "toy"\n'
    )
    cli("train", "--recipe=recipe.toml", f"--import-from={nets}", *few, "--run=recipe")
    assert same(parameters("command"), parameters("python"))
    assert same(parameters("command"), parameters("recipe"))
    assert str(nets) not in sys.path
    assert RunFolder.open("command").config["plan"]["learner"]["encoder"] == {"name": "usersnets:tiny"}


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("usersnets:nothing", "which can't be imported"),
        ("usersnetz:tiny", "which can't be imported"),
        ("usersnets:unannotated", "a function without such an annotation; expected a torch.nn.Module"),
        ("subprocess:Popen", "the class Popen; expected a torch.nn.Module"),
        ("os:system", "expected a torch.nn.Module"),
        ("torch.hub:load", "expected a torch.nn.Module"),
    ],
)
def test_what_makes_no_network_is_refused_before_it_is_called(nets: Path, path: str, told: str) -> None:
    """An import path may come from a file; nothing is called that does not say that it makes a network."""
    done = cli("check", "protonet", "toy", f"--learner.encoder={path}", f"--import-from={nets}", code=2)
    assert told in done.stderr


def test_classes_and_objects_are_networks_too(nets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An object is copied: two learners share no parameters."""
    monkeypatch.syspath_prepend(str(nets))
    spec = kshot.tasks("toy").spec
    first, second = (kshot.learner("protonet", spec, encoder="usersnets:shared") for _ in "ab")
    assert next(first.parameters()) is not next(second.parameters())
    assert kshot.learner("protonet", spec, encoder="usersnets:Wide").encoder.net.out_features == 12
    with pytest.raises(OptionError, match="is a module object and takes no options; got width"):
        kshot.learner("protonet", spec, encoder={"name": "usersnets:shared", "width": 3})
    with pytest.raises(OptionError, match="depth: unknown option"):
        kshot.learner("protonet", spec, encoder={"name": "usersnets:tiny", "depth": 3})
    alike = [kshot.learner("protonet", spec, encoder="usersnets:tiny", seed=s) for s in (1, 1, 2)]
    assert same(dict(alike[0].state_dict()), dict(alike[1].state_dict()))
    assert not same(dict(alike[0].state_dict()), dict(alike[2].state_dict()))


def test_somebody_else_s_run_imports_from_installed_packages_or_a_named_folder_only(
    nets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never from the run folder or the working folder, and a warning comes before the import."""
    cli("train", "protonet", "toy", "--learner.encoder=usersnets:tiny", f"--import-from={nets}", "--iterations=2",
        "--evaluate.episodes=3", "--quiet", "--run=run")  # fmt: skip
    sys.modules.pop("usersnets")
    for place in ("run", "."):
        Path(place, "usersnets.py").write_text("open('executed', 'w').close()\n" + NETS)
    monkeypatch.syspath_prepend(str(Path("run").absolute()))
    monkeypatch.syspath_prepend(str(Path.cwd()))
    for command in (("evaluate", "run"), ("resume", "run")):
        assert "usersnets lies in" in cli(*command, code=6).stderr
    with pytest.raises(RunError, match="expected a module of an installed package"):
        kshot.Trained.of_run("run")
    assert not Path("executed").exists()
    monkeypatch.undo()
    monkeypatch.chdir(nets.parent)
    with pytest.warns(UserWarning, match="importing usersnets:tiny from .*code.*, as option encoder"):
        kshot.Trained.of_run("run", import_from=nets)
    sys.modules.pop("usersnets")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        heard = cli("evaluate", "run", f"--import-from={nets}").stderr
    assert "kshot: warning: importing usersnets:tiny" in heard
    assert not Path("executed").exists()


def test_an_installed_package_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The core is one; its function says that it makes a network."""
    few = {"iterations": 2, "evaluate": {"episodes": 3}, "quiet": True}
    encoder = {"name": "kshot.nn:mlp", "input_shape": [20], "out": 4}
    kshot.runs.train({"name": "protonet", "encoder": encoder}, "toy", run="run", **few)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        kshot.Trained.of_run("run")
    assert [w for w in caught if "importing kshot.nn:mlp" in str(w.message)]


# --- Resuming --------------------------------------------------------------------------------------------------------


def engine(learner: dict[str, Any], tasks: dict[str, Any], run: str = "run", **options: Any) -> kshot.Engine:
    made = kshot.tasks(tasks.pop("name", "toy"), **tasks)
    return kshot.Engine(kshot.learner(learner.pop("name", "maml"), made.spec, **learner), made, run=run, **options)


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ({"inner_lr": 0.1}, {"inner_lr": 0.7}, "learner_options.inner_lr: the checkpoint has 0.1, this engine 0.7"),
        ({}, {"order": "first"}, "learner_options.order"),
        ({"seed": 1}, {"seed": 2}, "learner_seed: the checkpoint has 1, this engine 2"),
    ],
)
def test_other_options_of_the_learner_are_refused(before: dict[str, Any], after: dict[str, Any], told: str) -> None:
    """Though the parameters have the same shapes."""
    engine(dict(before), {}, seed=0).train(2)
    with pytest.raises(RunError, match="is the checkpoint of another run; nothing was changed") as caught:
        engine({**before, **after}, {}, seed=0).resume()
    assert told in str(caught.value)


def test_other_options_of_tasks_and_evaluation_are_refused() -> None:
    """Such as the share of examples that a view degrades."""
    pytest.importorskip("kshot_degraded")
    view = {"name": "degraded", "of": "toy", "how": "drop", "query": 5}
    engine({"name": "protonet"}, {**view, "fraction": 0.5}).train(2)
    with pytest.raises(RunError, match=r"tasks_options.fraction: the checkpoint has 0.5, this engine 0.25"):
        engine({"name": "protonet"}, {**view, "fraction": 0.25}).resume()
    engine({}, {}, run="b", validate_on=kshot.tasks("toy", way=5, shot=2)).train(2)
    with pytest.raises(RunError, match=r"evaluation.spec.shot: the checkpoint has 2, this engine 3"):
        engine({}, {}, run="b", validate_on=kshot.tasks("toy", way=5, shot=3)).resume()


def test_another_total_is_refused_where_the_learning_rates_depend_on_it() -> None:
    """Half a decay, then another one, is neither training."""
    decaying = {"schedule": "linear"}
    engine({}, {}, optimizer=decaying).train(4)
    second = engine({}, {}, optimizer=decaying)
    second.resume()
    with pytest.raises(OptionError, match="got iterations=8, expected 4 as this training began"):
        second.train(8)
    constant = {"schedule": "constant"}
    engine({}, {}, run="b", optimizer=constant).train(4)
    third = engine({}, {}, run="b", optimizer=constant)
    third.resume()
    third.train(8)
    assert third.iteration == 8


def test_versions_that_differ_are_warned_about_once() -> None:
    """A run may go on with other versions, but nobody should be surprised by other numbers."""
    from kshot._engine.run_folder import save_checkpoint

    engine({}, {}).train(2)
    path = RunFolder.open("run").newest()
    assert path is not None
    state = load_checkpoint(path)
    state["versions"] = {**state["versions"], "kshot-maml": "0.0.1", "torch": "1.9.0"}
    save_checkpoint(path, state)
    with pytest.warns(UserWarning, match=r"was written with torch 1\.9\.0 \(now .*\), kshot-maml 0\.0\.1") as heard:
        engine({}, {}).resume()
    assert len(heard) == 1


# --- Comparing -------------------------------------------------------------------------------------------------------


def test_runs_are_compared_by_seeds_and_episodes() -> None:
    """The figures are those of a plain second computation."""
    from scipy import stats

    few = ["--iterations=3", "--evaluate.episodes=40", "--quiet"]
    cli("train", "protonet", "toy", *few, "--seeds=0,1,2", "--run=a-{seed}")
    cli("train", "protonet", "toy", *few, "--seeds=0,1,2", "--learner.width=4", "--run=b-{seed}")
    runs = [f"{name}-{seed}" for name in "ab" for seed in range(3)]
    first, second = kshot.runs.compare(*runs).rows
    scores = {run: kshot.Result.from_json(Path(run, "result.json").read_text()).scores["accuracy"] for run in runs}
    means = np.array([scores[f"a-{s}"].mean() for s in range(3)])
    assert first.seeds == (0, 1, 2)
    assert first.mean == pytest.approx(means.mean())
    half = stats.t.interval(0.95, 2, loc=means.mean(), scale=stats.sem(means))[1] - means.mean()
    assert first.interval == pytest.approx(half)
    gaps = np.array([(scores[f"b-{s}"] - scores[f"a-{s}"]).mean() for s in range(3)])
    assert second.difference == pytest.approx(gaps.mean())
    half = stats.t.interval(0.95, 2, loc=gaps.mean(), scale=stats.sem(gaps))[1] - gaps.mean()
    assert (second.difference_interval, second.paired_over) == (pytest.approx(half), "seeds")
    assert second.method == "protonet, width 4"
    # One seed of each: the episodes are the sample.
    _, alone = kshot.runs.compare("a-0", "b-1").rows
    gap = scores["b-1"] - scores["a-0"]
    half = stats.t.interval(0.95, 39, loc=gap.mean(), scale=stats.sem(gap))[1] - gap.mean()
    assert (alone.difference, alone.difference_interval) == (pytest.approx(gap.mean()), pytest.approx(half))
    assert alone.paired_over == "episodes"


def test_compare_prints_a_table_and_writes_files() -> None:
    """Markdown for a paper's draft, CSV for everything else."""
    few = ["--iterations=2", "--evaluate.episodes=10", "--quiet"]
    cli("train", "protonet", "toy", *few, "--run=a")
    cli("train", "maml", "toy", "--training.way=5", *few, "--run=b")
    done = cli("compare", "a", "b", "--csv=c.csv", "--markdown=c.md")
    assert done.stdout.startswith("| test | method | seeds | accuracy | difference from the first | paired over |\n")
    assert "| 5-way 1-shot | maml | 0 |" in done.stdout
    assert Path("c.md").read_text().strip() == done.stdout.strip()
    rows = list(csv.DictReader(Path("c.csv").read_text().splitlines()))
    assert [row["method"] for row in rows] == ["protonet", "maml"]
    assert json.loads(cli("compare", "a", "b", "--json").stdout)[0]["difference"] is None


def test_runs_on_other_episodes_are_not_compared() -> None:
    """A figure over harder episodes says nothing; a file of another evaluation does."""
    few = ["--iterations=2", "--evaluate.episodes=10", "--quiet"]
    cli("train", "protonet", "toy", *few, "--run=a")
    cli("train", "protonet", "toy", *few, "--tasks.way=3", "--seed=1", "--run=b")
    assert "b was not tested on the episodes of the first run" in cli("compare", "a", "b", code=5).stderr
    cli("evaluate", "b", "--tasks.way=5", "--quiet", "--output=b.json")
    cli("compare", "a", "b.json")
    assert "expected at least two" in cli("compare", "a", code=5).stderr
    cli("train", "protonet", "toy", *few, "--run=c")
    assert "one seed twice" in cli("compare", "a", "c", code=5).stderr
    Path("a/result.json").unlink()
    assert "has no result yet" in cli("compare", "a", "b", code=6).stderr


def test_seeds_have_a_folder_each() -> None:
    """Else the second would meet the first's."""
    few = ["--iterations=2", "--evaluate.episodes=5", "--quiet"]
    assert (
        "expected a path with {seed} in it: run-{seed}"
        in cli("train", "protonet", "toy", *few, "--seeds=0,1", "--run=run", code=2).stderr
    )
    assert not Path("run").exists()
    done = cli("train", "protonet", "toy", *few, "--seeds=0,1")
    assert Path("runs/protonet-toy-0/result.json").exists()
    assert Path("runs/protonet-toy-1/result.json").exists()
    assert "accuracy over 2 seeds (95 % t interval)" in done.stdout
    runs = kshot.runs.train_seeds(
        "protonet", "toy", seeds=[0, 1], iterations=2, evaluate={"episodes": 5}, quiet=True, no_run=True
    )
    assert same(dict(runs[1].engine.learner.state_dict()), parameters("runs/protonet-toy-1"))
    for wrong in ("0,0", "a"):
        cli("train", "protonet", "toy", f"--seeds={wrong}", code=2)
