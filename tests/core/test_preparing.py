"""A run stores how its inputs are made; reading it back gives the same function, and never calls another one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kshot import ClassificationTasks, Pool, registry
from kshot._engine.inputs import INPUTS_FILE, load_inputs, save_inputs
from kshot.errors import RunError
from kshot.preparing import Preparation


def scaled(raw: Any, factor: float, offset: Tensor, below: Preparation | None = None) -> Tensor:
    x = torch.as_tensor(raw, dtype=torch.float32) if below is None else below(raw)
    return x * factor + offset


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.default._preparations, f"{__name__}:scaled", scaled)


def tasks(**options: Any) -> ClassificationTasks:
    pool = Pool.of(torch.zeros(8, 2), np.repeat([0, 1], 4))
    return ClassificationTasks({"train": pool}, way=2, query=1, **options)


def test_a_preparation_is_its_function_by_its_options() -> None:
    """So is one that is an option of another; options are read back with their types."""
    inner = Preparation.of(scaled, factor=2.0, offset=torch.ones(2))
    outer = Preparation.of(scaled, factor=10.0, offset=torch.zeros(2), below=inner)
    assert torch.equal(outer([[1.0, 2.0]]), torch.tensor([[30.0, 50.0]]))
    again = registry.preparation(outer.to_dict())
    assert torch.equal(again([[1.0, 2.0]]), torch.tensor([[30.0, 50.0]]))


def test_a_preparation_is_stored_with_the_run_and_read_back(tmp_path: Path) -> None:
    """It prepares the same inputs as before."""
    prepared = tasks(prepare=Preparation.of(scaled, factor=2.0, offset=torch.tensor([0.5, 1.0])))
    save_inputs(tmp_path, prepared)
    spec, prepare = load_inputs(tmp_path) or pytest.fail("nothing came back")
    assert spec == prepared.spec
    assert torch.equal(prepare([[1.0, 2.0]]), prepared.prepare([[1.0, 2.0]]))


def test_tasks_without_one_are_prepared_as_arrays_and_those_with_a_closure_are_not_written(tmp_path: Path) -> None:
    """The default function has a name that can be stored; a closure has none."""
    assert tasks().preparation.to_dict() == {"function": "kshot.episode:as_inputs", "options": {}}
    save_inputs(tmp_path, tasks(prepare=lambda raw: torch.zeros(1, 2)))
    assert load_inputs(tmp_path) is None
    save_inputs(tmp_path, object())
    assert not list(tmp_path.iterdir())


UNREGISTERED = [
    "os:system",
    "subprocess:run",
    "kshotx.evil:f",
    "",
    "kshot.testing.other_process:_import",
    "kshot._engine.run_folder:write_json",
    "kshot.episode:torch.load",
    "kshot.episode:check_finite",
    "kshot_omniglot.download:download",
]


@pytest.mark.parametrize("function", UNREGISTERED)
def test_only_registered_functions_are_called(function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run folder may be from somebody else: nothing that it names is imported, not even the function's module."""
    monkeypatch.setattr("importlib.import_module", lambda *_: pytest.fail("imported"))
    value = {"function": function, "options": {}}
    with pytest.raises(RunError, match=f"got inputs prepared by '{function}', expected a function that an installed"):
        registry.preparation(value)
    inside = {"function": f"{__name__}:scaled", "options": {"below": {"preparation": value}}}
    with pytest.raises(RunError, match="expected a function that an installed plugin has registered"):
        registry.preparation(inside)


@pytest.mark.parametrize("value", [None, [], {"function": "kshot.episode:as_inputs"}, {"function": 1, "options": {}}])
def test_another_form_is_refused(value: Any) -> None:
    """It must be exactly a name and options."""
    with pytest.raises(RunError, match="got no preparation"):
        registry.preparation(value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factor": "2", "offset": torch.ones(2)}, "factor: got '2' (str), expected float"),
        ({"factor": 2.0, "offset": [1.0]}, "offset: got [1.0] (list), expected Tensor"),
        ({"factor": 2.0, "offset": torch.ones(2), "path": "x"}, "path: unknown option"),
        ({"factor": 2.0}, "offset: got nothing, expected Tensor"),
        ({"factor": 2.0, "offset": torch.ones(2), "below": {"a": 1}}, "got other values for below, expected plain"),
        ({"factor": 2.0, "offset": torch.ones(2), "raw": 1}, "raw: unknown option"),
    ],
)
def test_options_are_checked_by_their_types(options: dict[str, Any], message: str) -> None:
    """The check is before the function is called, and also for options of options."""
    value = {"function": f"{__name__}:scaled", "options": options}
    with pytest.raises(RunError, match=re.escape(message)):
        registry.preparation(value)
    outer = {"factor": 1.0, "offset": torch.ones(2), "below": {"preparation": value}}
    with pytest.raises(RunError, match=re.escape(message)):
        registry.preparation({"function": f"{__name__}:scaled", "options": outer})


def untyped(raw: Any, factor=1.0) -> Tensor:  # type: ignore[no-untyped-def]
    return torch.ones(1)


def test_an_option_without_a_type_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A value can't be checked without a type."""
    monkeypatch.setitem(registry.default._preparations, f"{__name__}:untyped", untyped)
    with pytest.raises(RunError, match="got a function whose option factor has no type to check"):
        registry.preparation({"function": f"{__name__}:untyped", "options": {}})


class Mine:
    """Execute a function of its choice when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_registered_function_that_is_missing_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run was made with another version of the plugin."""
    monkeypatch.setattr("kshot.registry.registry.preparations", lambda: frozenset({"kshot.episode:nothing"}))
    with pytest.raises(RunError, match=r"which can't be imported.*install the version of the plugin"):
        registry.preparation({"function": "kshot.episode:nothing", "options": {}})


@pytest.mark.parametrize("damage", ["cut", "text", "pickle", "other"])
def test_a_damaged_file_is_named_and_runs_nothing(tmp_path: Path, damage: str) -> None:
    """A file from somebody else is read without executing anything in it."""
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
    reasons = "truncated, corrupt or not a|is not a|got nothing"
    with pytest.raises(RunError, match=rf"inputs\.pt: .*({reasons}).*remove it to prepare"):
        load_inputs(tmp_path)
    assert not (tmp_path / "ran").exists()
