"""A frozen encoder from the command line, a recipe and Python: embedded once, tested, and used on new files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor, nn

import kshot
from kshot._engine.run_folder import RunFolder
from kshot.cli import main
from kshot.errors import DataError
from kshot.nn import PictureEncoder, Tune
from kshot.registry import default
from kshot.runs.embedded import _view

pytest.importorskip("kshot_protonet")
pytest.importorskip("kshot_imagefolder")
Image = pytest.importorskip("PIL.Image")

COLOURS = {
    "black": (0, 0, 0),
    "blue": (0, 0, 255),
    "cyan": (0, 255, 255),
    "green": (0, 255, 0),
    "magenta": (255, 0, 255),
    "red": (255, 0, 0),
    "white": (255, 255, 255),
    "yellow": (255, 255, 0),
}


class Colours(PictureEncoder):
    """The mean colour of each quarter of a picture, scaled by a weight that can be tuned."""

    task_options = {"size": 12, "mode": "RGB", "fit": "crop", "unknown": 1}

    def __init__(self, spec: kshot.TaskSpec, *, tune: Tune = "none", gain: float = 1.0) -> None:
        net = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        with torch.no_grad():
            net[0].weight.copy_(gain * torch.eye(3)[..., None, None])  # type: ignore[operator, union-attr]
        super().__init__(net, spec.input_shape, mean=(0, 0, 0), std=(1, 1, 1), tune=tune)

    def forward(self, x: Tensor) -> Tensor:
        """Note how many pictures are embedded."""
        EMBEDDED.append(len(x))
        return super().forward(x)


EMBEDDED: list[int] = []

SPEC = kshot.TaskSpec(kind="classification", input_shape=(3, 12, 12), way=2, shot=1, query=1)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Work in an empty folder, with the encoder as a plugin of this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path / "cache"))
    registered, loaded = dict(default._registered), dict(default._loaded)
    kshot.register(Colours, group="encoders")
    EMBEDDED.clear()
    yield
    default._registered, default._loaded = registered, {**default._loaded, **loaded}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder of 8 colours with 6 noisy pictures each, of different sizes."""
    root, rng = tmp_path_factory.mktemp("pictures") / "photos", np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for i in range(6):
            noise = rng.normal(0, 60, (20 + i, 24, 3))
            pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


def cli(*args: object, code: int = 0) -> Result:
    done = CliRunner().invoke(main, list(map(str, args)))
    assert done.exit_code == code, done.output
    return done


FLAGS = ("--tasks.way=2", "--tasks.query=2", "--evaluate.episodes=40", "--learner.encoder=colours", "--quiet")


def trained(pictures: Path, *flags: str, run: str = "run", learner: str = "protonet") -> dict[str, Any]:
    """Train by the command line and return the plan of the run."""
    cli("train", learner, "imagefolder", f"--tasks.root={pictures}", *FLAGS, *flags, f"--run={run}")
    plan: dict[str, Any] = RunFolder.open(Path(run)).config["plan"]
    return plan


def score(run: str = "run") -> float:
    (result,) = json.loads(Path(run, "result.json").read_text())["results"]
    return float(result["mean"])


def test_a_frozen_encoder_is_a_view_without_training(pictures: Path) -> None:
    """Protonet has nothing to learn on embeddings, so the run is a test; every picture is embedded once."""
    plan = trained(pictures)
    assert plan["learner"]["encoder"] == "identity"
    for tasks in (plan["training"], *plan["tests"]):
        assert tasks["name"] == "embedded"
        assert tasks["encoder"] == {"name": "colours"}
        assert (tasks["of"]["size"], tasks["of"]["mode"], tasks["of"]["fit"]) == (12, "RGB", "crop")
    assert plan["tests"][0]["of"]["way"] == 2
    assert plan["engine"]["iterations"] == 0
    assert [p.name for p in Path("run", "checkpoints").iterdir() if p.suffix == ".pt"] == ["00000000.pt"]
    assert score() > 0.95
    assert EMBEDDED == [1, 1, 24]  # the shape of each view's embeddings, and the pictures of the test classes


def test_check_knows_the_encoder(pictures: Path) -> None:
    """It trains nothing, and says what would be done."""
    done = cli("check", "protonet", "imagefolder", f"--tasks.root={pictures}", *FLAGS[:2], "--learner.encoder=colours")
    assert "protonet fits embedded" in done.output


def test_flags_recipes_and_python_say_the_same(pictures: Path) -> None:
    """A run has the same plan, whoever made it."""
    expected = trained(pictures)
    Path("recipe.toml").write_text(
        f'[learner]\nname = "protonet"\nencoder = "colours"\n[tasks]\nname = "imagefolder"\nroot = "{pictures}"\n'
        "way = 2\nquery = 2\n[evaluate]\nepisodes = 40\n"
    )
    cli("train", "--recipe=recipe.toml", "--run=by-recipe", "--quiet")
    kshot.runs.train(
        {"name": "protonet", "encoder": "colours"},
        {"name": "imagefolder", "root": pictures, "way": 2, "query": 2},
        evaluate={"episodes": 40},
        run="by-python",
        quiet=True,
    )
    for run in ("by-recipe", "by-python"):
        found = RunFolder.open(Path(run)).config["plan"]
        assert {n: v for n, v in found.items() if n != "about"} == {n: v for n, v in expected.items() if n != "about"}
        assert score(run) == score()


def test_options_of_the_user_come_first(pictures: Path) -> None:
    """The size that suits the encoder is a default, and options of the tasks reach them below the view."""
    plan = trained(pictures, "--tasks.size=9", "--learner.encoder.gain=2", "--training.shot=2")
    assert plan["tests"][0]["of"]["size"] == plan["training"]["of"]["size"] == 9
    assert plan["training"]["of"]["shot"] == 2
    assert plan["tests"][0]["of"].get("shot", 1) == 1
    assert plan["tests"][0]["encoder"]["gain"] == 2.0


def test_evaluation_of_other_tasks(pictures: Path) -> None:
    """A run on embeddings is tested with another way and shot, as every run."""
    trained(pictures, "--tasks.split=[0.4,0.1,0.5]")
    done = cli("evaluate", "run", "--tasks.way=3", "--tasks.shot=2", "--json", "--quiet")
    (result,) = json.loads(done.stdout)["results"]
    assert (result["shape"]["way"], result["shape"]["shot"]) == (3, 2)
    assert result["mean"] > 0.9


def test_predictions_need_neither_data_nor_training(pictures: Path) -> None:
    """The run folder has the encoder's name and how pictures become its inputs."""
    moved = Path("moved")
    shutil.copytree(pictures, moved)
    trained(moved)
    support, new = Path("support"), Path("new")
    new.mkdir()
    for name in ("red", "blue"):
        shutil.copytree(moved / name, support / name)
        (support / name / "5.png").rename(new / f"{name}.png")
    shutil.rmtree(moved)
    shutil.rmtree("cache")
    done = cli("predict", "--run", "run", "--support", support, new / "blue.png", new / "red.png", "--json")
    told = json.loads(done.stdout)["predictions"]
    assert [max(p["probabilities"], key=p["probabilities"].get) if isinstance(p["probabilities"], dict) else p["class"]
            for p in told] == ["blue", "red"]  # fmt: skip


def test_predictions_refuse_other_weights(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin with the same name and other weights would give wrong classes without a word."""
    trained(pictures)
    init = Colours.__init__

    def other(self: Colours, spec: kshot.TaskSpec, **options: Any) -> None:
        init(self, spec, **{**options, "gain": 3.0})

    monkeypatch.setattr(Colours, "__init__", other)
    _view.cache_clear()  # as in another process
    with pytest.raises(DataError, match="encoder 'colours': got weights with the digest"):
        kshot.Trained.of_run("run").embed([pictures / "red" / "1.png"])


def test_a_tuned_encoder_is_trained(pictures: Path) -> None:
    """Its weights are the learner's, so they change and are in the checkpoint, and the tasks are pictures."""
    plan = trained(pictures, "--learner.encoder.tune=all", "--iterations=3")
    assert plan["learner"]["encoder"] == {"name": "colours", "tune": "all"}
    assert plan["tests"][0]["name"] == "imagefolder"
    assert plan["tests"][0]["size"] == 12
    before = kshot.encoder("colours", kshot.Trained.of_run("run").spec).state_dict()
    after = kshot.Trained.of_run("run").learner.state_dict()
    (weight,) = (value for name, value in after.items() if name.endswith("0.weight"))
    assert not torch.equal(weight, before["net.0.weight"])


def test_what_lies_above_the_embeddings_is_trained_and_resumed(pictures: Path) -> None:
    """Matching networks with full context embeddings have weights above a frozen encoder; a resumed training gives
    the same as one without a break.
    """
    pytest.importorskip("kshot_matchingnet")
    more = ("--learner.full_context=true", "--training.way=4")
    more += ("--iterations=6", "--engine.checkpoint_every=3")
    plan = trained(pictures, *more, learner="matchingnet")
    assert plan["training"]["name"] == "embedded"
    expected = kshot.Trained.of_run("run").learner.state_dict()
    assert expected
    assert expected.keys().isdisjoint(kshot.encoder("colours", SPEC).state_dict())
    Path("run", "checkpoints", "00000006.pt").unlink()
    Path("run", "result.json").unlink()
    assert not torch.equal(*(of[min(of)] for of in (kshot.Trained.of_run("run").learner.state_dict(), expected)))
    cli("resume", "run", "--quiet")
    found = kshot.Trained.of_run("run").learner.state_dict()
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


def test_the_encoder_of_a_run_serves_another_learner(pictures: Path) -> None:
    """A network that one run has trained embeds for the next."""
    trained(pictures, "--learner.encoder.tune=all", "--iterations=2", run="first")
    plan = trained(pictures, "--learner.encoder=run", f"--learner.encoder.run={Path('first').absolute()}", run="second")
    assert plan["tests"][0]["encoder"]["name"] == "run"
    assert score("second") > 0.9


def test_a_module_object_is_no_plugin(pictures: Path) -> None:
    """It is used as it is, within the learner, and the run says that it can't be built again."""
    module = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
    tasks = kshot.tasks("imagefolder", root=pictures, way=2, query=2, size=12)
    learner = kshot.learner("protonet", tasks.spec, encoder=module)
    assert kshot.Engine(learner, tasks).evaluate(episodes=20).mean > 0.9
    view = kshot.tasks("embedded", of=tasks, encoder=module)
    same = kshot.Engine(kshot.learner("protonet", view.spec, encoder="identity"), view).evaluate(episodes=20)
    assert same.mean == pytest.approx(kshot.Engine(learner, tasks).evaluate(episodes=20).mean)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--learner.encoder=colors",), r"no encoder is called 'colors'; did you mean 'colours'"),
        (("--learner.encoder=colours", "--learner.encoder.gian=2"), "gian"),
        (("--learner.encoder=colours", "--learner.encoder.tune=most"), "'none'.*'head'.*'all'"),
        (("--learner.encoder=run", "--learner.encoder.run=nowhere"), "nowhere"),
    ],
)
def test_wrong_encoders_are_refused_before_anything_is_decoded(
    pictures: Path, flags: tuple[str, ...], message: str
) -> None:
    done = CliRunner().invoke(main, ["train", "protonet", "imagefolder", f"--tasks.root={pictures}", *flags])
    assert done.exit_code not in (0, 1)
    assert not isinstance(done.exception, AssertionError)
    import re

    assert re.search(message, done.output), done.output
    assert "Traceback" not in done.output


def test_an_encoder_of_pictures_refuses_vectors() -> None:
    """The message names the shape of the tasks."""
    pytest.importorskip("kshot_toy")
    done = CliRunner().invoke(main, ["train", "protonet", "toy", "--learner.encoder=colours"])
    assert done.exit_code == 5, done.output
    assert "expected pictures [1, height, width] (grey) or [3, height, width]" in done.output
