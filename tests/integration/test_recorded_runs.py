"""The runs that are recorded beside the recipes can be read, and built again, by the code of today."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import kshot
from kshot._engine.result import Result
from kshot._engine.run_folder import RunFolder
from kshot.runs.plan import Plan, build_learner

RECORDED = Path(__file__).resolve().parents[2] / "recipes" / "recorded"
RUNS = sorted(path.parent for path in RECORDED.glob("**/config.json"))


def test_there_are_recorded_runs() -> None:
    """Otherwise the tests below would pass by testing nothing."""
    assert len(RUNS) > 20


@pytest.mark.parametrize("run", RUNS, ids=lambda run: str(run.relative_to(RECORDED)))
def test_a_recorded_config_builds_the_same_learner(run: Path) -> None:
    """The options are those of today's plugins, and the parameters have the recorded names and shapes."""
    config = RunFolder.open(run).config
    plan = Plan.of_run(run, config)
    tasks = config["identity"]["tasks"]  # as text in the older runs
    spec = kshot.TaskSpec.from_dict(json.loads(tasks) if isinstance(tasks, str) else tasks)
    learner = build_learner(plan, spec)
    shapes = {name: list(tensor.shape) for name, tensor in learner.state_dict().items()}
    assert shapes == config["identity"]["parameters"]
    for table in (plan.training, *plan.tests):
        assert kshot.info(str(table["name"])).plugin.group == "tasks"


@pytest.mark.parametrize("run", [run for run in RUNS if (run / "result.json").exists()], ids=lambda run: run.name)
def test_a_recorded_result_is_read_back(run: Path) -> None:
    """Its figures are those that were written."""
    text = (run / "result.json").read_text(encoding="utf-8")
    for i, written in enumerate(json.loads(text)["results"]):
        if written["scores"]:
            result = Result.from_json(text, test=i)
            assert result.mean == pytest.approx(written["mean"], rel=1e-5)  # scores are recorded with eight digits
