"""What a run writes down of how its inputs are made is read back as the same function, and as nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kshot import ClassificationTasks, Pool
from kshot.errors import RunError
from kshot.preparing import Preparation
from kshot.trained import INPUTS_FILE, load_inputs, save_inputs


def scaled(raw: Any, factor: float, offset: Tensor, below: Preparation | None = None) -> Tensor:
    x = torch.as_tensor(raw, dtype=torch.float32) if below is None else below(raw)
    return x * factor + offset


@pytest.fixture(autouse=True)
def _a_plugin_of_this_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kshot.preparing.packages", lambda: {"kshot", __name__.partition(".")[0]})


def tasks(**options: Any) -> ClassificationTasks:
    pool = Pool.of(torch.zeros(8, 2), np.repeat([0, 1], 4))
    return ClassificationTasks({"train": pool}, way=2, query=1, **options)


def test_a_preparation_is_its_function_by_its_options() -> None:
    """Also one in another; options come back with their types."""
    inner = Preparation.of(scaled, factor=2.0, offset=torch.ones(2))
    outer = Preparation.of(scaled, factor=10.0, offset=torch.zeros(2), below=inner)
    assert torch.equal(outer([[1.0, 2.0]]), torch.tensor([[30.0, 50.0]]))
    again = Preparation.from_dict(outer.to_dict())
    assert torch.equal(again([[1.0, 2.0]]), torch.tensor([[30.0, 50.0]]))


def test_it_goes_with_the_run_and_comes_back(tmp_path: Path) -> None:
    made = tasks(prepare=Preparation.of(scaled, factor=2.0, offset=torch.tensor([0.5, 1.0])))
    save_inputs(tmp_path, made)
    spec, prepare = load_inputs(tmp_path) or pytest.fail("nothing came back")
    assert spec == made.spec
    assert torch.equal(prepare([[1.0, 2.0]]), made.prepare([[1.0, 2.0]]))


def test_tasks_without_one_are_prepared_as_arrays_and_those_with_a_closure_are_not_written(tmp_path: Path) -> None:
    assert tasks().preparation.to_dict() == {"function": "kshot.episode:as_inputs", "options": {}}
    save_inputs(tmp_path, tasks(prepare=lambda raw: torch.zeros(1, 2)))
    assert load_inputs(tmp_path) is None
    save_inputs(tmp_path, object())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("function", ["os:system", "subprocess:run", "kshotx.evil:f", ""])
def test_only_functions_of_plugins_are_called(tmp_path: Path, function: str) -> None:
    """A run folder may come from somebody else."""
    value = {"function": function, "options": {}}
    with pytest.raises(RunError, match="which belongs to no installed plugin; install the one"):
        Preparation.from_dict(value)
    inside = {"function": "kshot.episode:as_inputs", "options": {"below": {"preparation": value}}}
    with pytest.raises(RunError, match="belongs to no installed plugin"):
        Preparation.from_dict(inside)


class Mine:
    """Runs what it likes where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    ("function", "told"),
    [
        ("kshot.episode:nothing", "has no such function of its own; install the version"),
        ("kshot.trained:write_atomically", "kshot.trained has no such function of its own"),
        ("kshot.episode:torch", "has no such function of its own"),
        ("kshot.none:made", "can't be imported"),
    ],
)
def test_a_function_that_is_not_there_or_another_module_s_is_told(function: str, told: str) -> None:
    """Of another version, or of a run folder that means ill."""
    with pytest.raises(RunError, match=told):
        Preparation.from_dict({"function": function, "options": {}})(1)


@pytest.mark.parametrize("damage", ["cut", "text", "pickle", "other"])
def test_a_damaged_file_is_named_and_runs_nothing(tmp_path: Path, damage: str) -> None:
    save_inputs(tmp_path, tasks())
    path = tmp_path / INPUTS_FILE
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:100])
    elif damage == "text":
        path.write_text("hello")
    elif damage == "pickle":
        torch.save({"format": "kshot-inputs", "version": 1, "spec": Mine(tmp_path / "ran")}, path)
    else:
        torch.save({"format": "kshot-inputs", "version": 2}, path)
    with pytest.raises(RunError, match=r"inputs\.pt: is (no whole|not of).*remove it to prepare files by the data"):
        load_inputs(tmp_path)
    assert not (tmp_path / "ran").exists()
