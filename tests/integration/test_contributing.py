"""The section 'Your first plugin in five minutes' of CONTRIBUTING.md works as written, outside the repository."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SECTION = "## Your first plugin in five minutes"


def section() -> str:
    """Return the text of the section."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return text.split(SECTION)[1].split("\n## ")[0]


def files_of(text: str) -> dict[str, str]:
    """Map the path of each file of the text to its content; the first line of a block gives the path."""
    return dict(re.findall(r"^```(?:python|toml)\n# (\S+)\n(.*?)^```", text, re.DOTALL | re.MULTILINE))


def commands_of(text: str) -> list[str]:
    """Return the console blocks of the text."""
    return re.findall(r"^```console\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def dependencies_without_ours(folder: Path) -> str:
    """Return a PYTHONPATH with everything that is installed here except kshot.

    In the newcomer's environment, pip finds torch there. So the test installs what a newcomer installs, but does not
    fetch gigabytes that are already on this machine.
    """
    folder.mkdir()
    shown = [folder]
    for site in (Path(p) for p in sys.path if Path(p).is_dir()):
        if site.name.startswith("base-"):  # the large packages that tox's environments share
            shown.append(site)
        elif site.name == "site-packages":
            for entry in site.iterdir():
                ours = re.match(r"_?(_editable_impl_)?kshot|pip($|-)|__pycache__|.*\.pth$", entry.name)
                if not ours and not (folder / entry.name).exists():
                    (folder / entry.name).symlink_to(entry)
    return os.pathsep.join(map(str, shown))


class Newcomer:
    """Represent a user with a clone of the repository who types the commands of the text."""

    def __init__(self, home: Path) -> None:
        (home / "kshot").symlink_to(ROOT, target_is_directory=True)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("VIRTUAL_ENV", "TOX_", "PYTEST_", "KSHOT_"))}
        self.folder, self._ended = home, home / "ended-in"
        self.environment = {
            **kept,
            "PYTHONPATH": dependencies_without_ours(home / "packages"),
            "PIP_NO_BUILD_ISOLATION": "0",  # "0" switches the isolation off: hatchling is already here
            "KSHOT_CACHE": str(home / "cache"),
        }

    def types(self, script: str) -> str:
        """Run a script in bash and return what it prints; it starts in the folder where the last script ended."""
        command = f"[ ! -e .venv ] || . .venv/bin/activate\n{script}\npwd >'{self._ended}'"
        where = {"cwd": self.folder, "env": self.environment}
        done = subprocess.run(["bash", "-ec", command], **where, capture_output=True, text=True)
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
        self.folder = Path(self._ended.read_text(encoding="utf-8").strip())
        return done.stdout


@pytest.fixture(scope="module")
def text() -> str:
    return section()


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory, text: str) -> Newcomer:
    """Run the first block of commands and write the files."""
    newcomer = Newcomer(tmp_path_factory.mktemp("newcomer"))
    newcomer.types(commands_of(text)[0])
    for name, content in files_of(text).items():
        file = newcomer.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8")
    return newcomer


@pytest.fixture(scope="module")
def typed(newcomer: Newcomer, text: str) -> dict[str, str]:
    """Map each command of the second block to what it printed."""
    return {command: newcomer.types(command) for command in commands_of(text)[1].splitlines()}


def output_of(typed: dict[str, str], beginning: str) -> str:
    """Return what the command with this beginning printed."""
    (output,) = [out for command, out in typed.items() if command.startswith(beginning)]
    return output


def test_the_text_has_every_file_and_the_learner_is_short(text: str) -> None:
    """A learner that can be read in five minutes has about forty lines."""
    files = files_of(text)
    assert set(files) == {
        "src/kshot_nearest_mean/__init__.py",
        "src/kshot_nearest_mean/plugin.toml",
        "pyproject.toml",
        "tests/test_nearest_mean.py",
        "try_it.py",
    }
    assert len(files["src/kshot_nearest_mean/__init__.py"].splitlines()) <= 45


def test_the_plugin_is_listed_as_ok(typed: dict[str, str]) -> None:
    """Once a plugin is installed, kshot finds it without further steps."""
    listed = output_of(typed, "kshot list")
    assert re.search(r"^nearest-mean +learners +classification +ok +nearest class mean", listed, re.M)
    assert "width: int = 16  length of an embedding (D)." in output_of(typed, "kshot info")


def test_the_plugin_trains_on_toy_and_learns(typed: dict[str, str], newcomer: Newcomer) -> None:
    """Chance is 20 % at five ways, and the learner must be clearly better."""
    trained = output_of(typed, "kshot train")
    found = re.search(r"^(\d+\.\d+) ± (\d+\.\d+) % accuracy \(600 episodes, test, 5-way 1-shot\)$", trained, re.M)
    assert found, trained
    assert float(found[1]) > 30
    assert (newcomer.folder / "runs" / "nearest-mean-toy-0" / "result.json").is_file()


def test_the_plugin_passes_the_kit(typed: dict[str, str]) -> None:
    """The kit must accept the simplest correct learner."""
    printed = output_of(typed, "python -m pytest")
    found = re.search(r"(\d+) passed", printed)
    assert found is not None, printed
    assert int(found[1]) >= 10
    assert "failed" not in printed


def test_the_same_class_works_through_register(newcomer: Newcomer, typed: dict[str, str], text: str) -> None:
    """In a notebook or a script the same class works without a package."""
    printed = newcomer.types(commands_of(text)[2])
    assert re.search(r"% accuracy \(100 episodes, test, 5-way 1-shot\)$", printed, re.M), printed
    assert re.search(r"^learner MyNearestMean: .*\d+ passed", printed, re.M)
    assert "failed" not in printed


def test_what_was_installed_is_the_newcomer_s_own(newcomer: Newcomer, typed: dict[str, str]) -> None:
    """If the commands used the kshot that runs this test, they would prove nothing about the text."""
    code = "import kshot, kshot_nearest_mean; print(kshot.__file__); print(kshot_nearest_mean.__file__)"
    printed = newcomer.types(f"python -c '{code}'")
    assert all(line.startswith(str(newcomer.folder / ".venv")) for line in printed.splitlines())


def test_the_encoder_of_the_page_keeps_the_rules() -> None:
    """The code of the section 'An encoder' is a right encoder, which can be built by its name."""
    import kshot
    from kshot.registry import default
    from kshot.testing import suite

    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("\n## An encoder")[1].split("\n## ")[0]
    (code,) = files_of(text).values()
    names: dict[str, object] = {"__name__": "kshot_patches"}
    exec(compile(code, "CONTRIBUTING.md", "exec"), names)
    report = suite(encoder=names["patches"]).run()
    assert report.ok, report
    registered = dict(default._registered)
    try:
        kshot.register(names["patches"], name="patches", group="encoders")
        spec = kshot.TaskSpec(kind="classification", input_shape=(1, 28, 28), way=2, shot=1, query=1)
        assert kshot.encoder("patches:2", spec)(kshot.arrays.as_inputs([[[[0.0] * 28] * 28]], "x")).shape == (1, 32)
    finally:
        default._registered = registered
