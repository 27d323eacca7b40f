"""The same known examples are degraded everywhere, each way computes what it should, and bad options are refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import kshot
from kshot import ClassificationTasks, Pool
from kshot.errors import DataError, MisfitError, OptionError
from kshot.randomness import episode_keys, normal, uniform
from kshot.testing import sample_tasks
from kshot_degraded import Degraded
from kshot_degraded.ways import WAYS, blur, contrast, downsample, drop, noise, occlude

SPLITS = {"train": range(20), "test": range(20, 30), "trainval": range(25)}


def pictures(n: int, channels: int = 1, height: int = 8, width: int = 6, seed: int = 0) -> Tensor:
    """Draw n images with uniform values in [0, 1)."""
    keys = episode_keys(seed, "pictures", range(n))
    return torch.from_numpy(uniform(keys, "x", channels * height * width)).view(n, channels, height, width)


def tasks(**options: Any) -> ClassificationTasks:
    """Make 30 classes of 20 images in one table of bytes. Row r is an example of class r // 20; splits share rows."""
    x = (pictures(600) * 255).to(torch.uint8)
    rows = np.arange(600).reshape(30, 20)
    pools = {
        split: Pool(x, rows[list(classes)], np.full(len(classes), 20), input_range=(0.0, 1.0))
        for split, classes in SPLITS.items()
    }
    return ClassificationTasks(pools, **options)


def view(**options: Any) -> Degraded:
    return Degraded(tasks(), **options)


def keys(n: int) -> Any:
    return episode_keys(1, "keys", range(n))


# --- Which examples -----------------------------------------------------------------------------------------------


def test_an_example_is_degraded_in_all_episodes_or_in_none() -> None:
    """It has the very same pixels in support and query, and in every split that has it."""
    v, clean, seen = view(how="noise"), tasks(), {}
    for split in ("train", "trainval", "test"):
        e = v.sample(split, range(60))
        x_clean = clean.pool(split)
        for ids, x in ((e.origin.support_ids, e.support.x), (e.origin.query_ids, e.query.x)):
            for row, shown in zip(ids.reshape(-1).tolist(), x.flatten(0, 1), strict=True):
                assert torch.equal(seen.setdefault(row, shown), shown)
                changed = not torch.equal(shown, x_clean.gather(np.array([row]))[0])
                assert changed == v.marked([row]).item()
    assert len(seen) == 600


def test_the_others_are_as_they_were_bit_for_bit() -> None:
    """With fraction 0 all examples are unchanged, and with fraction 1 none is."""
    plain = tasks(way=5, query=4).sample("train", range(5))
    for fraction in (0.0, 0.4, 1.0):
        v = view(query=4, fraction=fraction)
        e = v.sample("train", range(5))
        truth = v.truth(e)
        for name, x, y in (("support", e.support.x, plain.support.x), ("query", e.query.x, plain.query.x)):
            same = (x == y).flatten(2).all(-1).numpy()
            assert np.array_equal(same, ~truth[name])
    assert v.truth(e)["query"].all()


def test_a_fraction_is_a_probability_and_a_greater_one_degrades_more() -> None:
    """The share of 600 rows is right within 4 standard deviations; a greater fraction includes the smaller one's."""
    before = np.zeros(600, bool)
    for fraction in (0.1, 0.3, 0.5, 0.9):
        marked = view(fraction=fraction).marked(np.arange(600))
        assert abs(marked.mean() - fraction) < 4 * math.sqrt(fraction * (1 - fraction) / 600)
        assert not (before & ~marked).any()
        before = marked


def test_which_examples_is_pinned_and_moves_with_the_seed() -> None:
    """The choice is the same on every platform and in later versions, and another seed chooses others."""
    assert np.flatnonzero(view().marked(np.arange(30))).tolist() == PINNED
    assert (view(seed=1).marked(np.arange(600)) != view().marked(np.arange(600))).mean() > 0.4


def test_episodes_are_those_of_the_tasks_below_but_for_what_is_degraded() -> None:
    """Results with and without the view are measured on the same classes, examples and queries."""
    plain = tasks(way=4, shot=2, query=3, seed=5).sample("test", range(8))
    for options in ({}, {"how": "noise", "fraction": 0.9}, {"where": "support"}):
        e = view(way=4, shot=2, query=3, seed=5, **options).sample("test", range(8))
        for name, array in plain.origin.arrays().items():
            assert np.array_equal(array, e.origin.arrays()[name])
        assert torch.equal(e.query.y, plain.query.y)


def test_the_support_alone_can_be_degraded() -> None:
    """Queries are unchanged, ``truth`` says so, and without a pool no other view can be put above."""
    v, whole = view(where="support", query=4), view(query=4)
    e, plain = v.sample("train", range(6)), tasks(query=4).sample("train", range(6))
    assert torch.equal(e.query.x, plain.query.x)
    assert torch.equal(e.support.x, whole.sample("train", range(6)).support.x)
    assert not v.truth(e)["query"].any()
    assert v.truth(e)["support"].any()
    assert not hasattr(v, "pool")
    with pytest.raises(MisfitError, match="without a pool of examples"):
        Degraded(v)


def test_a_view_above_shows_degraded_examples_and_the_truth_of_them_is_known() -> None:
    """``truth`` knows the unlabelled examples of the view above by their rows."""
    v = view(way=3, query=2)
    e = sample_tasks.WithMore(v, unlabelled=6, external=0).sample("train", range(4))  # type: ignore[arg-type]
    clean = tasks().pool("train").gather(e.origin.unlabelled_ids)
    assert np.array_equal((e.support.unlabelled != clean).flatten(2).any(-1).numpy(), v.truth(e)["unlabelled"])
    assert set(v.truth(e)) == {"support", "query", "unlabelled"}


def test_two_of_these_views_one_over_the_other_do_both() -> None:
    """The lower view reduces the contrast of all examples, the upper one occludes half of them."""
    below = view(how="contrast", fraction=1.0, strength=0.5)
    v = Degraded(below, how="occlude", query=2, seed=1)
    e = v.sample("train", [0])
    truth, once = v.truth(e)["query"][0], below.pool("train").gather(e.origin.query_ids)[0]
    assert torch.equal(e.query.x[0][~truth], once[~truth])
    assert truth.any()
    keys_of = episode_keys(1, "degraded", e.origin.query_ids[0][truth])
    assert torch.equal(e.query.x[0][truth], occlude(once[truth], keys_of, 0.25))


def test_inputs_stay_within_their_range() -> None:
    """Noise is cut off at the input range; inputs without a range are not cut off."""
    x = view(how="noise", strength=2.0, fraction=1.0).sample("train", [0]).query.x
    assert float(x.min()) == 0
    assert float(x.max()) == 1
    free = Degraded(sample_tasks.classification(), how="noise", strength=50.0, fraction=1.0, query=3)
    assert float(free.sample("train", [0]).query.x.abs().max()) > 50


def test_class_vectors_are_passed_on_and_raw_examples_are_prepared_by_the_tasks_below() -> None:
    """Neither class vectors nor a user's own examples are degraded."""
    of = sample_tasks.classification(semantics=3)
    e = Degraded(of, way=3, query=3, how="noise").sample("test", [0, 1])
    assert torch.equal(e.support.semantics, of.pool("test").semantics[torch.from_numpy(e.origin.classes)])
    assert Degraded(tasks(prepare=lambda raw: torch.full((1, 1), float(raw)))).prepare(3).tolist() == [[3.0]]


# --- The ways -----------------------------------------------------------------------------------------------------


def test_downsampling_is_the_mean_over_boxes_brought_back() -> None:
    """8 x 6 pixels at 0.5 are 4 x 3 boxes of 2 x 2; each pixel is interpolated between its four nearest boxes."""
    x = pictures(2)
    degraded = downsample(x, keys(2), 0.5)
    boxes = x.view(2, 4, 2, 3, 2).mean((2, 4))
    for i in range(8):
        for j in range(6):
            u, v = min(max((i + 0.5) / 2 - 0.5, 0), 3), min(max((j + 0.5) / 2 - 0.5, 0), 2)
            a, b = int(u), int(v)
            a2, b2 = min(a + 1, 3), min(b + 1, 2)
            top = boxes[:, a, b] * (1 - v + b) + boxes[:, a, b2] * (v - b)
            bottom = boxes[:, a2, b] * (1 - v + b) + boxes[:, a2, b2] * (v - b)
            assert torch.allclose(degraded[:, 0, i, j], top * (1 - u + a) + bottom * (u - a), atol=1e-12)


def test_downsampling_to_one_pixel_leaves_the_mean() -> None:
    """Strength 1 leaves the mean; a strength that changes no side changes nothing."""
    x = pictures(3, channels=2)
    assert torch.allclose(downsample(x, keys(3), 1.0), x.mean((2, 3), keepdim=True).expand_as(x), atol=1e-12)
    assert torch.allclose(downsample(x, keys(3), 0.01), x, atol=1e-12)


def test_noise_is_normal_and_each_example_s_own() -> None:
    """It is the normal numbers of the example's key, times the strength."""
    x = pictures(4)
    degraded = noise(x, keys(4), 0.3)
    for i in range(4):
        own = normal(keys(4)[i : i + 1], "noise", 48).reshape(1, 8, 6)
        assert torch.allclose(degraded[i], x[i] + 0.3 * torch.from_numpy(own), atol=1e-12)


def test_blur_is_the_weighted_mean_of_the_neighbours() -> None:
    """A naive sum at every pixel, with the edge repeated outside, agrees; a plain image does not change."""
    x = pictures(1)
    degraded = blur(x, keys(1), 0.8)
    w = [math.exp(-0.5 * (k / 0.8) ** 2) for k in range(-3, 4)]
    for i in range(8):
        for j in range(6):
            total = 0.0
            for a in range(7):
                for b in range(7):
                    row, column = min(max(i + a - 3, 0), 7), min(max(j + b - 3, 0), 5)
                    total += w[a] * w[b] * float(x[0, 0, row, column])
            assert float(degraded[0, 0, i, j]) == pytest.approx(total / sum(w) ** 2, abs=1e-10)
    plain = torch.full((2, 3, 5, 5), 0.7, dtype=torch.float64)
    assert torch.allclose(blur(plain, keys(2), 2.0), plain)


def test_occlusion_hides_one_rectangle_of_the_area_asked_for() -> None:
    """0.25 of 8 x 6 is 4 x 3, the same in all channels, and every place occurs."""
    x = torch.ones(600, 2, 8, 6)
    hidden = occlude(x, keys(600), 0.25) == 0
    assert torch.equal(hidden[:, 0], hidden[:, 1])
    tops = []
    for plane in hidden[:, 0]:
        i, j = plane.nonzero().T
        assert (int(i.max() - i.min()) + 1, int(j.max() - j.min()) + 1, len(i)) == (4, 3, 12)
        tops.append((int(i.min()), int(j.min())))
    assert set(tops) == {(i, j) for i in range(5) for j in range(4)}
    assert bool((occlude(x[:3], keys(3), 1.0) == 0).all())


def test_values_are_dropped_one_by_one() -> None:
    """Each value is 0 with the given probability, drawn by the example's key; the others do not change."""
    x = torch.ones(200, 50)
    degraded = drop(x, keys(200), 0.3)
    assert degraded.unique().tolist() == [0, 1]
    assert float((degraded == 0).float().mean()) == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / 10000))
    lost = uniform(keys(200)[7:8], "drop", 50)[0] < 0.3
    assert np.array_equal((degraded[7] == 0).numpy(), lost)


def test_contrast_goes_towards_the_example_s_own_mean() -> None:
    """A quarter of the way to the means 1 and 6 is computed by hand."""
    x = torch.tensor([[0.0, 1.0, 2.0], [4.0, 4.0, 10.0]])
    assert contrast(x, keys(2), 0.25).tolist() == [[0.25, 1.0, 1.75], [4.5, 4.5, 9.0]]


@pytest.mark.parametrize("how", list(WAYS))
def test_every_way_degrades_by_name_at_its_usual_strength(how: Any) -> None:
    """Each way changes every marked example, and does it in the same way again."""
    v = view(how=how, fraction=1.0)
    assert v.strength == WAYS[how].usual
    x, plain = v.sample("train", [0]).query.x, tasks().sample("train", [0]).query.x
    assert bool((x != plain).flatten(2).any(-1).all())
    assert torch.equal(x, view(how=how, fraction=1.0).sample("train", [0]).query.x)


# --- Errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"how": "rain"}, "got how 'rain', expected one of downsample, noise, blur"),
        ({"where": "query"}, "got where 'query', expected one of all, support"),
        ({"fraction": 1.5}, "got fraction 1.5, expected a share of the examples"),
        ({"fraction": -0.1}, "got fraction -0.1"),
        ({"strength": 0.0}, "got strength 0.0, expected a share greater than 0"),
        ({"strength": 1.5}, "got strength 1.5, expected a share"),
        ({"how": "noise", "strength": -1.0}, "got strength -1.0, expected a standard deviation"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    """The view is not built, and the error says what was expected."""
    with pytest.raises(OptionError, match=message):
        view(**options)


def test_images_are_needed_for_some_ways() -> None:
    """The error lists the ways that vectors can have."""
    for how in ("downsample", "blur", "occlude"):
        with pytest.raises(
            MisfitError, match=rf"got how '{how}' for inputs .* expected images .* noise, drop, contrast"
        ):
            Degraded(sample_tasks.classification(), how=how)


def test_tasks_without_a_pool_of_labelled_examples_are_refused() -> None:
    """Tasks of another kind are refused, and classification tasks without a pool; an unknown split is too."""

    class Opaque:
        spec = tasks().spec

        def sample(self, split: str, indices: Any) -> kshot.Episode:
            raise AssertionError("not asked")

    with pytest.raises(MisfitError, match="Lines are regression tasks without a pool"):
        Degraded(sample_tasks.Lines())
    with pytest.raises(MisfitError, match="Opaque are classification tasks without a pool"):
        Degraded(Opaque())
    with pytest.raises(DataError, match="unknown split 'trian'"):
        view().sample("trian", [0])


def test_an_episode_without_identities_has_no_truth() -> None:
    """An origin without identities does not tell which examples the episode shows."""
    v = view()
    e = v.sample("train", [0])
    with pytest.raises(DataError, match="origin has no support_ids"):
        v.truth(kshot.Episode(e.support, e.query))


PINNED = [0, 4, 5, 6, 8, 11, 20, 22, 23, 24, 26]
