"""Encoders are plugins: registered, built by name, and named by the options of learners and tasks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import kshot
from kshot import registry
from kshot.cli import main
from kshot.errors import DataError, OptionError, PluginError, RunError, UnknownPluginError
from kshot.nn import Encoder, EncoderChoice, PictureEncoder, Tune, digest_of, encoder, tuned
from kshot.registry import default
from kshot.registry.conversion import Raw
from kshot.registry.networks import hint
from kshot.runs.chosen import chosen_encoder
from kshot.spec import TaskSpec
from kshot.testing import sample_learner, sample_tasks

SPEC = TaskSpec(kind="classification", input_shape=(6,), way=2, shot=1, query=1)
PICTURES = TaskSpec(kind="classification", input_shape=(3, 16, 16), way=2, shot=1, query=1)


class Linear(nn.Module):
    """A linear encoder with random weights; ``model`` is its number of outputs."""

    task_options = {"size": 8, "mode": "RGB"}

    def __init__(self, spec: TaskSpec, *, model: int = 4, tune: Tune = "none") -> None:
        super().__init__()
        if len(spec.input_shape) != 1:
            raise DataError(f"linear-test: got inputs of shape {list(spec.input_shape)}, expected vectors")
        self.layer = nn.Linear(spec.input_shape[0], model)
        tuned(self, tune)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.layer(x)
        return z


class OneEpisode(nn.Module):
    """Apply an encoder of episodes [B, n, *input] to inputs [n, *input]."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.encoder(x[None])
        return z[0]


class Nearest(sample_learner.NearestMean):
    """The learner of the kit with an encoder that can be chosen."""

    def __init__(self, spec: TaskSpec, *, encoder: EncoderChoice = "linear") -> None:
        super().__init__(spec)
        self.embedding = OneEpisode(kshot.nn.encoder(encoder, spec.input_shape))  # type: ignore[assignment]


@pytest.fixture(autouse=True)
def _plugins() -> Iterator[None]:
    registered, loaded = dict(default._registered), dict(default._loaded)
    kshot.register(Linear, name="linear-test", group="encoders")
    kshot.register(Nearest, name="nearest-test")
    yield
    default._registered, default._loaded = registered, {**default._loaded, **loaded}


def cli(*args: object) -> str:
    done = CliRunner().invoke(main, [str(a) for a in args], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


# --- By name ----------------------------------------------------------------------------------------------------------


def test_an_encoder_is_built_by_name() -> None:
    """It is in evaluation mode, and the registry remembers how it was built."""
    built = kshot.encoder("linear-test", SPEC, model=3, tune="all")
    assert not built.training
    assert built(torch.zeros(2, 6)).shape == (2, 3)
    how = registry.built(built)
    assert how is not None
    assert (how.group, how.name, how.options) == ("encoders", "linear-test", {"model": 3, "tune": "all"})


def test_initial_weights_are_the_same_and_draw_nothing() -> None:
    """Else a run could not be built again, and building an encoder would change what follows."""
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    assert digest_of(kshot.encoder("linear-test", SPEC)) == digest_of(kshot.encoder("linear-test", SPEC))
    assert torch.equal(torch.rand(1), expected)


def test_a_colon_names_the_model() -> None:
    """``NAME:MODEL`` is short for the option ``model``; both together contradict each other."""
    assert kshot.encoder("linear-test:7", SPEC)(torch.zeros(1, 6)).shape == (1, 7)
    with pytest.raises(OptionError, match="got linear-test:7 and the option model; expected one of them"):
        kshot.encoder("linear-test:7", SPEC, model=7)
    with pytest.raises(OptionError, match="model"):
        kshot.encoder("linear-test:large", SPEC)


def test_a_factory_must_return_a_module() -> None:
    def not_a_module(spec: TaskSpec) -> Any:
        return lambda x: x

    kshot.register(not_a_module, name="function", group="encoders")
    with pytest.raises(PluginError, match=r"encoder 'function' .*got a function, expected a torch.nn.Module"):
        kshot.encoder("function", SPEC)


def test_a_wrong_name_gets_advice() -> None:
    """The nearest name, what is installed, and which distribution has a name that is not."""
    with pytest.raises(UnknownPluginError, match="no encoder is called 'linear-tset'; did you mean 'linear-test'"):
        kshot.encoder("linear-tset", SPEC)
    with pytest.raises(UnknownPluginError, match="'nearest-test' is a learner, not an encoder"):
        kshot.encoder("nearest-test", SPEC)
    with pytest.raises(UnknownPluginError, match=r"'linear-test' is an encoder, not a learner: .*encoder\('linear-"):
        kshot.learner("linear-test", SPEC)


def test_it_is_listed_and_described() -> None:
    """As the plugins of every other group are."""
    assert any("linear-test" in line and "encoders" in line for line in cli("list").splitlines())
    assert any(line.split()[:2] == ["run", "encoders"] for line in cli("list").splitlines())
    text = cli("info", "linear-test")
    assert "encoder 'linear-test'" in text
    assert "tune" in text


# --- As an option -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given", ["linear-test:5", {"name": "linear-test", "model": 5}, {"": Raw("linear-test"), "model": Raw("5")}]
)
def test_an_option_names_an_encoder(given: Any) -> None:
    """A run records the name and the options, from which the same learner is built again."""
    built = kshot.learner("nearest-test", SPEC, encoder=given)
    assert built.embed(torch.zeros(1, 2, 6)).shape == (1, 2, 5)  # type: ignore[attr-defined]
    how = registry.built(built)
    assert how is not None
    assert how.portable
    assert how.options["encoder"] == {"name": "linear-test", "model": 5}
    again = registry.rebuild(built, SPEC)
    assert digest_of(again) == digest_of(built)


def test_an_encoder_s_seed_is_the_learner_s() -> None:
    """Another seed is another initialisation, also of the encoder."""
    one, two = (kshot.learner("nearest-test", SPEC, seed=seed, encoder="linear-test") for seed in (0, 1))
    assert digest_of(one) != digest_of(two)  # type: ignore[arg-type]


def test_what_an_option_does_not_know_is_refused_with_advice() -> None:
    """Before, the message had the learner's own names alone."""
    with pytest.raises(OptionError) as raised:
        kshot.learner("nearest-test", SPEC, encoder="linear-tset")
    for text in ("option encoder", "got 'linear-tset'", "'conv4'", "an encoder plugin", "did you mean 'linear-test'"):
        assert text in str(raised.value)
    with pytest.raises(OptionError, match="'efficientnet-light'; did you mean 'efficientnet-lite'"):
        kshot.learner("nearest-test", SPEC, encoder="efficientnet-light")


def test_an_error_of_the_encoder_names_the_option() -> None:
    with pytest.raises(DataError, match=r"option encoder of learner .*got inputs of shape \[3, 16, 16\]"):
        kshot.learner("nearest-test", PICTURES, encoder="linear-test")


def test_a_path_that_looks_like_a_model_gets_advice() -> None:
    """``timm:resnet18`` has the form of an import path too."""
    assert "kshot-efficientnet-lite: pip install kshot-efficientnet-lite" in hint("efficientnet-lite:large")
    assert hint("mypackage.nets:resnet") == hint("protonet:x") == ""


def test_names_of_the_option_come_first() -> None:
    """An encoder plugin can't take over a name that a learner gives a meaning."""

    def conv4(spec: TaskSpec) -> nn.Module:
        raise AssertionError("not called")

    kshot.register(conv4, group="encoders")
    assert kshot.learner("nearest-test", PICTURES, encoder="conv4") is not None


def test_tasks_take_an_encoder_too() -> None:
    """An encoder of a view is built for the tasks below it."""
    kshot.register(sample_tasks.classification, name="sampled", group="tasks")
    view = kshot.tasks("embedded", of="sampled", encoder="linear-test:2")
    assert view.spec.input_shape == (2,)
    how = registry.built(view)
    assert how is not None
    assert how.portable
    assert how.options["encoder"] == {"name": "linear-test", "model": 2}


# --- The encoder that a learner's options name ------------------------------------------------------------------------


def test_chosen_encoder() -> None:
    """It is frozen unless it is tuned, and says which inputs suit it."""
    chosen = chosen_encoder({"name": "nearest-test", "encoder": "linear-test:3"})
    assert chosen is not None
    assert (chosen.option, chosen.encoder, chosen.frozen) == ("encoder", {"name": "linear-test", "model": "3"}, True)
    assert chosen.task_options == {"size": 8, "mode": "RGB"}
    tuned_one = chosen_encoder({"name": "nearest-test", "encoder": {"name": "linear-test", "tune": "head"}})
    assert tuned_one is not None
    assert not tuned_one.frozen
    for other in ("conv4", "mypackage.nets:resnet12", nn.Identity(), None):
        assert chosen_encoder({"name": "nearest-test", "encoder": other}) is None
    assert chosen_encoder({"name": "nearest-test"}) is None


def test_task_options_may_depend_on_the_options() -> None:
    class Sized(Linear):
        @staticmethod
        def task_options(model: int = 4, **_: Any) -> dict[str, Any]:  # type: ignore[override]
            return {"size": int(model)}

    kshot.register(Sized, group="encoders")
    chosen = chosen_encoder({"name": "nearest-test", "encoder": "sized:9"})
    assert chosen is not None
    assert chosen.task_options == {"size": 9}


def test_a_learner_without_identity_trains_with_the_frozen_encoder() -> None:
    """It can't do without its encoder, so its inputs are not replaced by embeddings."""

    class Own(Nearest):
        def __init__(self, spec: TaskSpec, *, encoder: Literal["auto"] | nn.Module = "auto") -> None:
            super().__init__(spec, encoder="linear" if isinstance(encoder, str) else encoder)

    kshot.register(Own)
    chosen = chosen_encoder({"name": "own", "encoder": "linear-test"})
    assert chosen is not None
    assert not chosen.frozen


# --- What pretrained encoders have in common --------------------------------------------------------------------------


def test_tuned() -> None:
    """The head is the last module with weights, or the one that is given."""

    def trained(tune: Any, head: int | None = None) -> list[bool]:
        net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU())
        tuned(net, tune, None if head is None else net[head])
        assert not net.training
        return [net[i].weight.requires_grad for i in (0, 2)]  # type: ignore[union-attr]

    assert trained("none") == [False, False]
    assert trained("all") == [True, True]
    assert trained("head") == [False, True]
    assert trained("head", head=0) == [True, False]
    with pytest.raises(OptionError, match="got 'last', expected 'none', 'head' or 'all'"):
        trained("last")
    with pytest.raises(OptionError, match="got 'head' for an encoder without weights"):
        tuned(nn.ReLU(), "head")


def test_digest_depends_on_names_values_and_buffers() -> None:
    """A batch norm's statistics change the embeddings as weights do."""
    one = nn.BatchNorm1d(3)
    expected = digest_of(one)
    assert digest_of(nn.BatchNorm1d(3)) == expected
    one.running_mean[1] = 2  # type: ignore[index]
    assert digest_of(one) != expected
    assert digest_of(nn.Sequential(nn.BatchNorm1d(3))) != expected
    assert digest_of(nn.BatchNorm1d(3).double()) != expected
    assert digest_of(nn.Linear(2, 2).to(torch.bfloat16)) != digest_of(nn.Linear(2, 2))


def test_pictures_are_resized_and_normalised() -> None:
    """By hand: a grey picture of 4 x 4 averaged to 2 x 2, in three channels, (x - mean) / std."""
    net = PictureEncoder(nn.Flatten(), (1, 4, 4), size=(2, 2), mean=(0, 0.5, 1), std=(1, 2, 4))
    x = torch.zeros(1, 1, 4, 4)
    x[..., :2, :] = 1
    z = net(x).view(3, 2, 2)
    assert z[0, 0, 0] > 0.8  # antialiasing reaches a little over the edge
    assert torch.allclose(z[1], (z[0] - 0.5) / 2)
    assert torch.allclose(z[2], (z[0] - 1) / 4)
    same = PictureEncoder(nn.Flatten(), (3, 2, 2), size=(2, 2), mean=(0, 0, 0), std=(1, 1, 1))
    colour = torch.rand(2, 3, 2, 2)
    assert torch.equal(same(colour), colour.flatten(1))


@pytest.mark.parametrize("shape", [(2, 8, 8), (8,), (1, 8)])
def test_other_inputs_than_pictures_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"expected pictures \[1, height, width\] .grey. or \[3, height, width\]"):
        PictureEncoder(nn.Flatten(), shape)


def test_identity_is_an_encoder() -> None:
    """On embeddings, a learner compares the numbers as they are."""
    net = encoder("identity", (2, 3))
    assert isinstance(net, Encoder)
    x = torch.rand(4, 2, 3)
    with torch.no_grad():
        assert torch.equal(net(x[None])[0], x.flatten(1))


# --- The encoder of a run ---------------------------------------------------------------------------------------------


def test_the_encoder_of_a_run(tmp_path: Path) -> None:
    """It embeds as the learner of the run does, and a run records its path."""
    kshot.register(sample_tasks.classification, name="sampled", group="tasks")
    kshot.runs.train("nearest-test", "sampled", run=tmp_path / "run", iterations=3, quiet=True)
    trained = kshot.Trained.of_run(tmp_path / "run")
    x = torch.rand(5, 6)
    for tune in ("none", "all"):
        module = kshot.encoder("run", SPEC, run=tmp_path / "run", tune=tune)
        with torch.no_grad():
            assert torch.allclose(module(x), trained.learner.embed(x[None])[0], atol=1e-6)  # type: ignore[attr-defined]
        assert {p.requires_grad for p in module.parameters()} == {tune == "all"}
    view = kshot.tasks("embedded", of="sampled", encoder={"name": "run", "run": str(tmp_path / "run")})
    assert view.sample("test", [0]).support.x.ndim == 3
    with pytest.raises(DataError, match=r"got tasks with inputs of shape \[3, 16, 16\], expected \[6\]"):
        kshot.encoder("run", PICTURES, run=tmp_path / "run")
    with pytest.raises(RunError, match="none"):
        kshot.encoder("run", SPEC, run=tmp_path / "none")
