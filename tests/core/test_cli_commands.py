"""Commands that need no plugin."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from kshot.cli import main

LISTING = """
import sys
from kshot.cli import main
main(["list", *sys.argv[1:]], standalone_mode=False)
heavy = {"torch", "numpy", "pluggy"}
plugins = {name for name in sys.modules if name.startswith("kshot_")}
print(sorted((heavy & set(sys.modules)) | plugins), file=sys.stderr)
"""


@pytest.mark.parametrize("args", [[], ["--json"]])
def test_list_imports_no_plugin_and_nothing_heavy(args: list[str]) -> None:
    """It answers in a tenth of a second however many plugins there are, broken ones too."""
    done = subprocess.run([sys.executable, "-c", LISTING, *args], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "progress" in done.stdout


def test_list_shows_name_group_kinds_state_and_summary() -> None:
    """As a table, and as JSON with everything known."""
    lines = CliRunner().invoke(main, ["list"]).stdout.splitlines()
    assert lines[0].split() == ["NAME", "GROUP", "KINDS", "STATE", "SUMMARY"]
    cpu = next(line for line in lines if line.startswith("cpu "))
    assert cpu.split()[:4] == ["cpu", "backends", "-", "ok"]
    found = {plugin["name"]: plugin for plugin in json.loads(CliRunner().invoke(main, ["list", "--json"]).stdout)}
    assert found["cpu"]["state"] == "ok"
    assert found["cpu"]["distribution"] == "kshot"


def test_info_shows_options_with_types_and_defaults() -> None:
    """What ``--backend.NAME`` may be."""
    text = CliRunner().invoke(main, ["info", "cpu"]).stdout
    assert "threads: int | None = None" in text
    options = json.loads(CliRunner().invoke(main, ["info", "cpu", "--json"]).stdout)["options"]
    threads = next(option for option in options if option["name"] == "threads")
    assert threads["type"] == "int | None"
    assert threads["required"] is False


def test_an_unknown_plugin_exits_with_four_and_a_near_name() -> None:
    """One message on standard error, nothing on standard output."""
    done = CliRunner().invoke(main, ["info", "cpuu"])
    assert (done.exit_code, done.stdout) == (4, "")
    assert done.stderr.startswith("kshot: no plugin is called 'cpuu'; did you mean 'cpu'?")
    assert "Traceback" not in done.stderr


def test_debug_shows_the_traceback_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """For people who write plugins."""
    monkeypatch.setenv("KSHOT_DEBUG", "1")
    done = CliRunner().invoke(main, ["info", "cpuu"])
    assert done.exit_code == 4
    assert "Traceback" in done.stderr
    assert "kshot: no plugin" in done.stderr


def test_an_unknown_plain_flag_exits_with_two() -> None:
    """Section flags are free, others are not."""
    done = CliRunner().invoke(main, ["train", "a", "b", "--sed", "3"])
    assert done.exit_code == 2
    assert "--seed" in done.stderr


def test_a_folder_that_is_no_run_exits_with_six(tmp_path_factory: pytest.TempPathFactory) -> None:
    """For resume and evaluate alike."""
    folder = tmp_path_factory.mktemp("empty")
    for command in ("resume", "evaluate"):
        done = CliRunner().invoke(main, [command, str(folder)])
        assert done.exit_code == 6
        assert "is not a run folder" in done.stderr


def test_a_run_made_in_python_is_refused_with_the_way_to_go_on(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Its config does not name how to build the learner."""
    folder = tmp_path_factory.mktemp("python")
    (folder / "config.json").write_text("{}")
    done = CliRunner().invoke(main, ["resume", str(folder)])
    assert done.exit_code == 6
    assert "engine.resume()" in done.stderr


def test_help_documents_the_exit_codes() -> None:
    """Scripts rely on them."""
    text = CliRunner().invoke(main, ["--help"]).stdout
    assert "3    learner and tasks do not fit" in text
    assert "--learner.NAME=VALUE" in CliRunner().invoke(main, ["train", "--help"]).stdout


@pytest.mark.parametrize(("ok", "code"), [(True, 0), (False, 4)])
def test_doctor_ends_with_four_if_anything_is_wrong(ok: bool, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts look at the exit code."""
    from kshot.cli import show

    monkeypatch.setattr(show, "examine", lambda: {"ok": ok})
    assert CliRunner().invoke(main, ["doctor", "--json"]).exit_code == code


@pytest.mark.parametrize(("threshold", "same"), [(0.5, True), (0.4999, False), (0.6, True)])
def test_a_pair_at_the_threshold_is_of_the_same_class(
    threshold: float, same: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The threshold is the greatest distance that counts as the same."""
    from kshot.cli import inference

    class Model:
        @classmethod
        def of_run(cls, run: Path, *, import_from: Path | None) -> Model:
            return cls()

        def distances(self, a: list[Path], b: list[Path]) -> list[float]:
            return [0.5]

    monkeypatch.setattr(inference, "Trained", Model)
    (tmp_path / "a").touch()
    assert inference.verify(tmp_path, tmp_path / "a", tmp_path / "a", threshold)["same"] is same
