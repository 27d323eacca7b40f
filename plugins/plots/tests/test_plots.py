"""Pictures show the values that they were given, files are complete, and nothing is overwritten."""

import struct
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import kshot
from kshot import Engine, Needs, Result
from kshot.errors import OptionError
from kshot.testing import sample_tasks
from kshot_plots import Plots, curves, fit, of_result, of_trace, scenes, trajectories, weights, write
from kshot_plots.figures import slots_in_use


def result(kind: str, **scores) -> Result:
    return Result(scores={n: np.asarray(v, float) for n, v in scores.items()}, kind=kind, split="test")


def test_a_curve_is_the_mean_over_episodes_with_its_interval():
    """Two episodes with 1 and 3 have the mean 2 and the half width 12.706 sqrt(2) / sqrt(2), by Student's t."""
    figure = curves({"a": result("objective", loss=[1, 3], curve=[[1, 10], [3, 10]])}, "curve")
    (axes,) = figure.axes
    assert axes.lines[0].get_ydata().tolist() == [2, 10]
    assert axes.lines[0].get_xdata().tolist() == [1, 2]
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((2 - 12.7062047, 2 + 12.7062047))
    assert axes.get_yscale() == "log"
    assert axes.get_ylabel() == "loss"


def test_curves_of_several_results_share_a_picture_and_are_named():
    """Two results give two named lines on the same axes."""
    one = result("sequence", error=[0.5], error_by_step=[[0.5, 0.5]])
    (axes,) = curves({"mann": one, "lstm": one}, "error_by_step").axes
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["mann", "lstm"]
    assert axes.get_yscale() == "linear"
    assert list(of_result(one)) == ["error_by_step"]


def test_a_fit_shows_the_chosen_steps_in_order_of_x():
    """Queries are in any order, and a line through them must not go back."""
    x = np.array([[[2.0], [0.0], [1.0]]])
    outputs = np.stack([x + k for k in range(7)], 1)
    trace = {"inputs": x, "outputs": outputs, "targets": 2 * x, "support_inputs": x, "support_targets": x}
    (axes,) = fit(trace).axes
    truth, before, one, five, support = axes.lines
    assert truth.get_ydata().tolist() == [0, 2, 4]
    assert before.get_ydata().tolist() == [0, 1, 2]
    assert one.get_ydata().tolist() == [1, 2, 3]
    assert five.get_ydata().tolist() == [5, 6, 7]
    assert [line.get_label() for line in axes.lines] == ["truth", "before", "1 step", "5 steps", "support"]
    assert support.get_linestyle() == "None"


def test_each_task_has_its_own_picture():
    """Every line of ``fit`` and every panel of ``weights`` is of the task that was asked for."""
    x = np.arange(3.0)[None, :, None] + np.array([0.0, 10.0])[:, None, None]
    trace = {"inputs": x, "outputs": x[:, None] + 1, "targets": x + 2, "support_inputs": x, "support_targets": x + 3}
    lines = fit(trace, task=1).axes[0].lines
    assert [line.get_xdata().tolist() for line in lines] == [[10, 11, 12]] * 3
    assert [line.get_ydata().tolist() for line in lines] == [[12, 13, 14], [11, 12, 13], [13, 14, 15]]
    w = np.zeros((2, 4, 1, 3))
    w[0, :, 0, 0], w[1, :, 0, 2] = 1, 1
    shown = weights({"read_weights": w}, task=1).axes[0]
    assert [t.get_text() for t in shown.get_yticklabels()] == ["2"]


def test_weights_show_every_head_and_only_slots_in_use():
    """There is one panel per head, and of 9 slots only 3 to 5, which are used, are drawn."""
    w = np.zeros((1, 6, 2, 9))
    w[0, :, 0, 3], w[0, 2, 1, 5] = 1, 0.5
    figure = weights({"read_weights": w, "write_weights": w[:, :, :1]})
    panels = [axes for axes in figure.axes if axes.images and axes.get_title()]
    assert [axes.get_title() for axes in panels] == ["write", "read head 1", "read head 2"]
    shown = panels[2].images[0].get_array()
    assert shown.shape == (3, 6)
    assert shown[2, 2] == 0.5
    assert [t.get_text() for t in panels[0].get_yticklabels()] == ["3", "4", "5"]


def test_the_longest_stretch_of_unused_slots_is_left_out():
    """Slots are a circle: slots 8, 9, 0 and 1 of ten are one stretch, and are drawn as one."""
    greatest = np.zeros(10)
    greatest[[8, 0, 1]] = 1
    assert slots_in_use(greatest).tolist() == [8, 9, 0, 1]
    assert slots_in_use(np.zeros(3)).tolist() == [0, 1, 2]
    assert slots_in_use(np.ones(3)).tolist() == [0, 1, 2]
    assert slots_in_use(np.eye(4)[2]).tolist() == [2]


def test_trajectories_have_a_panel_for_each_number_of_updates():
    """The panels before and after the updates share their axes, and show the goal."""
    paths = np.random.default_rng(0).normal(size=(2, 3, 4, 5, 2))
    figure = trajectories({"trajectories": paths, "goal": np.array([[0, 0], [0.3, 0.4]])}, task=1)
    assert [axes.get_title() for axes in figure.axes] == ["before", "after 1 update", "after 2 updates"]
    assert np.array_equal(figure.axes[1].lines[2].get_xydata(), paths[1, 1, 2])
    assert figure.axes[0].lines[-1].get_xydata().tolist() == [[0.3, 0.4]]


def test_scenes_show_the_demonstration_and_the_paths_before_and_after_all_steps():
    """Each row is a trajectory with its own objects; one demonstration leaves the panels below it empty."""
    random = np.random.default_rng(0)
    kinds = {"paths": (5, 2), "objects": (3, 2), "hues": (3,), "targets": ()}
    trace = {name: random.normal(size=(2, 4, 2, *shape)) for name, shape in kinds.items()}
    trace |= {f"shown_{name}": random.normal(size=(2, 1, *shape)) for name, shape in kinds.items()}
    trace["targets"], trace["shown_targets"] = random.integers(3, size=(2, 4, 2)), random.integers(3, size=(2, 1))
    figure = scenes(trace, task=1)
    panels = np.array(figure.axes).reshape(2, 3)
    assert [axes.get_title() for axes in panels[0]] == ["demonstration", "before", "after 3 steps"]
    for r in range(2):
        for axes, k in ((panels[r, 1], 0), (panels[r, 2], 3)):
            ring, path, start = axes.lines
            assert np.array_equal(path.get_xydata(), trace["paths"][1, k, r])
            assert np.array_equal(ring.get_xydata()[0], trace["objects"][1, k, r, trace["targets"][1, k, r]])
            assert np.array_equal(start.get_xydata()[0], trace["paths"][1, k, r, 0])
            assert np.array_equal(axes.collections[0].get_offsets(), trace["objects"][1, k, r])
            assert np.array_equal(axes.collections[0].get_array(), trace["hues"][1, k, r] % (2 * np.pi))
    assert np.array_equal(panels[0, 0].lines[1].get_xydata(), trace["shown_paths"][1, 0])
    assert not panels[1, 0].lines
    alone = {name: values[:, :1] for name, values in trace.items() if not name.startswith("shown_")}
    assert [axes.get_title() for axes in scenes(alone, rows=1).axes] == ["before"]
    assert list(of_trace(trace)) == ["scenes"]


def test_only_what_a_trace_contains_is_drawn():
    """The names in the trace decide, and images as inputs give no fit."""
    assert of_trace({"attention": torch.zeros(1, 2, 3)}) == {}
    images = {"inputs": np.zeros((1, 3, 1, 8, 8)), "outputs": np.zeros((1, 2, 3, 5)), "targets": np.zeros((1, 3))}
    assert of_trace({**images, "support_inputs": images["inputs"], "support_targets": images["targets"]}) == {}
    assert list(of_trace({"read_weights": torch.ones(1, 4, 1, 3, requires_grad=True)})) == ["weights"]


class Explaining(nn.Module):
    """Predict the mean of the support, with a trace for the picture ``fit``."""

    needs = Needs(kinds=("regression",))

    def __init__(self, spec) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def meta_gradient(self, episodes):
        loss = (self.adapt(episodes.support)(episodes.query.x) - episodes.query.y).square().mean()
        loss.backward()
        return {"loss": loss.detach()}

    def adapt(self, support):
        return lambda x: self.scale * support.y.mean(1, keepdim=True).expand(*x.shape[:2], -1)

    def trace(self, episode):
        out = self.adapt(episode.support)(episode.query.x[..., :1])[:, None]
        x = episode.query.x[..., :1]
        seen = {"support_inputs": episode.support.x[..., :1], "support_targets": episode.support.y}
        return {"inputs": x, "outputs": out, "targets": episode.query.y, **seen}


def png_size(path) -> tuple[int, int]:
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", head[16:])


def test_the_hook_writes_pictures_into_the_run_and_keeps_earlier_ones(tmp_path):
    """The hook is built by name; it does not draw validation, and the second test gets a number."""
    tasks = sample_tasks.Lines()
    engine = Engine(Explaining(tasks.spec), tasks, run=tmp_path / "run", hooks=["plots"])
    engine.train(2, validate_every=1, validation_episodes=3)
    pictures = tmp_path / "run" / "pictures"
    assert not pictures.exists()
    engine.evaluate(3)
    engine.evaluate(3)
    assert sorted(p.name for p in pictures.iterdir()) == ["fit-2.png", "fit.png"]
    assert png_size(pictures / "fit.png") == (660, 432)


def test_a_folder_can_be_given_and_a_run_without_one_writes_nothing(tmp_path, monkeypatch):
    """Without a folder and a run the hook writes nothing."""
    monkeypatch.chdir(tmp_path)
    tasks = sample_tasks.Lines()
    Engine(Explaining(tasks.spec), tasks, hooks=["plots"]).evaluate(2)
    assert list(tmp_path.iterdir()) == []
    Engine(Explaining(tasks.spec), tasks, hooks=[kshot.hook("plots", folder="here", dpi=50)]).evaluate(2)
    assert png_size(tmp_path / "here" / "fit.png") == (275, 180)


def test_of_several_processes_only_the_first_draws(tmp_path):
    """Otherwise all of them would write the same files at once."""
    curve = result("objective", loss=[1.0], curve=[[2.0, 1.0]])
    for rank, files in ((1, []), (0, ["curve.png"])):
        world = SimpleNamespace(rank=rank, size=2)
        engine = SimpleNamespace(folder=None, backend=SimpleNamespace(world=world), learner=nn.Linear(1, 1))
        Plots(folder=tmp_path / "pictures").evaluation_end(engine, 0, curve)
        assert sorted(path.name for path in tmp_path.rglob("*.png")) == files


def test_a_picture_that_cannot_be_drawn_leaves_no_file(tmp_path):
    """A figure with a broken title leaves no incomplete file; a bad dpi is refused."""
    figure = curves({"a": result("objective", loss=[1, 3], curve=[[1, 10], [3, 10]])}, "curve")
    figure.axes[0].set_title("$\\nonsense{$")
    with pytest.raises(ValueError, match="nonsense"):
        write(figure, tmp_path / "curve.png")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OptionError, match="got dpi 0"):
        Plots(dpi=0)
