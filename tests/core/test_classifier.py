"""A classifier of a few examples: what is left out, what is plausible, and that a file brings it back as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch

import kshot
from kshot.errors import DataError, OptionError, RunError
from kshot.runs.classifier import (
    Classifier,
    Estimate,
    distances,
    fitted,
    left_out_distances,
    predicted,
    unusualness,
)
from kshot.runs.classifier_file import load, save
from kshot.testing import sample_learner


def blobs(n: int = 6, way: int = 3, seed: int = 0, spread: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    """Return n examples [way * n, 8] of each class, around a random direction, in no order."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.nn.functional.normalize(torch.randn(way, 8, generator=generator), dim=1)
    y = torch.arange(way).repeat(n)
    return centres[y] + spread * torch.randn(way * n, 8, generator=generator), y


NAMES = ["ash", "birch", "cedar"]


def test_left_out_distances_are_those_of_a_naive_loop() -> None:
    """Each example is removed, all means are computed again, and its own distance is corrected for the size."""
    x, y = blobs(n=4)
    x, y = x[:-1], y[:-1]  # classes of different sizes
    out = np.arange(len(y))
    made = left_out_distances(x, y.numpy(), out, 3)
    for i in out:
        rest = [j for j in out if j != i]
        expected = distances(x[rest], y[rest].numpy(), x[[i]], 3)[0]
        k = int((y == y[i]).sum())
        expected[y[i]] *= (k * k - 1) / (k * k)
        assert np.allclose(made[i], expected, rtol=1e-9)


def test_the_correction_makes_the_mean_left_out_distance_that_of_a_new_example() -> None:
    """Averaged over many draws of three examples, to two per cent; without it the ratio would be 9 / 8."""
    rng = torch.Generator().manual_seed(5)
    left, new = [], []
    for _ in range(3000):
        x = torch.tensor([10.0] + [0.0] * 7) + torch.randn(4, 8, generator=rng)
        y = np.zeros(3, np.int64)
        left.append(left_out_distances(x[:3], y, np.arange(3), 1)[:, 0].mean())
        new.append(distances(x[:3], y, x[3:], 1)[0, 0])
    assert np.mean(left) == pytest.approx(np.mean(new), rel=0.02)


def test_what_is_unusual_by_hand() -> None:
    """2 d_c - min over the other classes."""
    assert unusualness(np.array([[1.0, 4.0, 9.0]])).tolist() == [[-2.0, 7.0, 17.0]]
    assert unusualness(np.array([[2.0, 2.0]])).tolist() == [[2.0, 2.0]]


def test_the_estimate_is_the_share_of_left_out_examples_that_are_right() -> None:
    """As a loop over fits without the example says."""
    x, y = blobs(spread=0.6)
    made = fitted(x, y, NAMES)
    right = 0
    for i in range(len(y)):
        rest = [j for j in range(len(y)) if j != i]
        d = distances(made.x[rest], y[rest].numpy(), made.x[[i]], 3)[0]
        d[y[i]] *= 35 / 36
        right += int(d.argmin() == int(y[i]))
        assert made.left_out[i] == d.argmin()
    assert made.estimate == Estimate(right, len(y))


def test_a_learner_that_is_named_predicts() -> None:
    """Its logits are divided by the temperature; each left-out prediction is that of the learner on the others."""
    kshot.register(sample_learner.NearestMean, name="sample-learner")
    learner = {"name": "sample-learner", "width": 4}
    x, y = blobs(n=3)
    made = fitted(x, y, NAMES, learner)
    logits = predicted(learner, made.x[None], y[None], made.x[None], 3)[0].double()
    expected = torch.softmax(logits / made.temperature, -1)
    assert np.allclose(made.predict(made.x).probabilities, expected, atol=1e-9)
    for i in range(len(y)):
        rest = [j for j in range(len(y)) if j != i]
        alone = predicted(learner, made.x[rest][None], y[rest][None], made.x[[i]][None], 3)[0, 0]
        assert made.left_out[i] == int(alone.argmax())


def test_plausible_classes_cover_new_examples_as_stated() -> None:
    """Over 200 fits of five examples, with 20 new ones each; sets of the right size on average."""
    covered = []
    for seed in range(200):
        x, y = blobs(n=25, seed=seed, spread=0.35)
        made = fitted(x[:15], y[:15], NAMES)
        answer = made.predict(x[15:], coverage=0.8)
        covered.append(answer.plausible[np.arange(60), y[15:].numpy()].mean())
    assert np.mean(covered) == pytest.approx(0.8, abs=0.03)


def test_what_is_of_no_class_has_no_plausible_one() -> None:
    """An input in the opposite direction of all classes."""
    x, y = blobs()
    answer = fitted(x, y, NAMES).predict(-x[:3].sum(0, keepdim=True) * 5, coverage=0.8)
    assert answer.known.tolist() == [False]
    assert answer.labels[0] in NAMES


def test_one_example_a_class_gives_predictions_but_no_estimate() -> None:
    """All classes are plausible then."""
    x, y = blobs(n=1)
    made = fitted(x, y, NAMES)
    assert made.estimate is None
    assert made.left_out.tolist() == [-1] * 3
    answer = made.predict(x)
    assert answer.labels == NAMES
    assert answer.plausible.all()


def test_classes_are_added_extended_and_removed() -> None:
    """The result is that of a fit with these examples."""
    x, y = blobs()
    made = fitted(x, y, NAMES)
    more = made.extended({"ash": x[:2] + 0.1, "doum": -x[:3]})
    assert more.names == ("ash", "birch", "cedar", "doum")
    assert np.bincount(more.y).tolist() == [8, 6, 6, 3]
    assert more.files[-1] == "doum/2"
    less = more.without(["birch"])
    assert less.names == ("ash", "cedar", "doum")
    again = fitted(less.x, torch.from_numpy(less.y), less.names)
    assert again.temperature == less.temperature
    with pytest.raises(OptionError, match="got the class 'oak' to remove, expected one of ash, birch, cedar"):
        made.without(["oak"])
    with pytest.raises(DataError, match="expected at least two classes"):
        made.without(["ash", "birch"])


def test_a_file_brings_it_back_as_it_was(tmp_path: Path) -> None:
    """Every value, and the predictions bit for bit."""
    x, y = blobs()
    made = fitted(x, y, NAMES, files=[f"{i}.png" for i in range(len(y))])
    save(made, tmp_path / "mine.kshot")
    read = load(tmp_path / "mine.kshot")
    for name in attrs.fields_dict(Classifier):
        one, other = getattr(made, name), getattr(read, name)
        same = torch.equal(one, other) if isinstance(one, torch.Tensor) else np.array_equal(one, other)
        assert same, name
    assert np.array_equal(made.predict(x).probabilities, read.predict(x).probabilities)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": torch.tensor([0, 1])}, "do not belong together"),
        ({"names": ["ash"]}, "names: got a value of type list, expected a list of at least 2"),
        ({"temperature": -1.0}, "do not belong together"),
        ({"temperature": "hot"}, "temperature: got 'hot', expected a number"),
        ({"x": torch.full((18, 8), float("nan")).half()}, "do not belong together"),
        ({"preparation": {"function": "os:system", "options": {}}}, "got inputs prepared by 'os:system'"),
        ({"learner": {"name": 3}}, "learner.name: got 3, expected text"),
        ({"more": 1}, "only the keys"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    """Each value is checked before any is used, also in a file with a right digest."""
    from kshot._engine.run_folder import digest

    x, y = blobs()
    save(fitted(x, y, NAMES), tmp_path / "mine.kshot")
    value = torch.load(tmp_path / "mine.kshot", weights_only=True)
    value["body"] = {**value["body"], **change}
    value["digest"] = digest(value["body"])
    torch.save(value, tmp_path / "mine.kshot")
    with pytest.raises(RunError, match=message):
        load(tmp_path / "mine.kshot")


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    """Changed bytes, a truncated file, and something else."""
    x, y = blobs()
    path = tmp_path / "mine.kshot"
    save(fitted(x, y, NAMES), path)
    value = torch.load(path, weights_only=True)
    value["body"]["x"][0] += 1
    torch.save(value, path)
    with pytest.raises(RunError, match="does not match its digest"):
        load(path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(RunError, match="truncated, corrupt or not a classifier of kshot"):
        load(path)
    torch.save({"format": "other"}, path)
    with pytest.raises(RunError, match="is no classifier of version 1"):
        load(path)
    with pytest.raises(RunError, match="can't be read"):
        load(tmp_path / "none.kshot")


@pytest.mark.parametrize("coverage", [0.0, 1.0, -1, float("nan")])
def test_a_coverage_is_between_0_and_1(coverage: float) -> None:
    """Others are refused."""
    x, y = blobs()
    with pytest.raises(OptionError, match="got coverage"):
        fitted(x, y, NAMES).predict(x, coverage=coverage)


def test_inputs_of_another_shape_are_refused() -> None:
    """With both shapes in the message."""
    x, y = blobs()
    with pytest.raises(DataError, match=r"got inputs of shape \[2, 5\], expected \[n, 8\]"):
        fitted(x, y, NAMES).predict(torch.zeros(2, 5))
    with pytest.raises(DataError, match="expected at least two classes with at least one example each"):
        fitted(x, torch.zeros(18, dtype=torch.int64), ["ash", "birch"])
