"""The view ``embedded`` shows the episodes below as embeddings, which are computed once and cached."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import kshot
from kshot import ClassificationTasks, Episode, Pool
from kshot.errors import DataError, MisfitError, OptionError
from kshot.preparing import Preparation
from kshot.registry import default
from kshot.runs.embedded import Embedded, prepared
from kshot.runs.views import lowered, suited
from kshot.testing import sample_tasks

SPLITS = (("train", 0, 6), ("val", 6, 9), ("test", 9, 12))


class Counting(nn.Module):
    """A random map of pictures [n, 1, 3, 4] to 5 numbers, which counts the examples that it embeds."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        weight = torch.randn(5, 12, generator=torch.Generator().manual_seed(seed))
        self.weight = nn.Parameter(weight)
        self.drop = nn.Dropout(0.5)
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        self.count += len(x)
        return torch.tanh(self.drop(x.flatten(1)) @ self.weight.T)


def counted(view: Embedded) -> int:
    """Return how many examples a view has embedded since the last call, without the one of its construction."""
    module = view._embedding
    count, module.count = module.count, 0  # type: ignore[assignment]
    return int(count)  # type: ignore[call-overload]


def pools(shared: bool = True) -> dict[str, Pool]:
    """Make pools of 12 classes of 7 pictures as bytes; the splits share one table, in which they use some rows."""
    x = torch.randint(0, 256, (100, 1, 3, 4), generator=torch.Generator().manual_seed(3)).to(torch.uint8)
    rows = np.random.default_rng(0).permutation(100)[:84].reshape(12, 7)
    names = tuple("abcdefghijkl")
    made = {}
    for split, a, b in SPLITS:
        table, places = (x, rows[a:b]) if shared else (x[rows[a:b].ravel()], np.arange((b - a) * 7).reshape(b - a, 7))
        made[split] = Pool(table, places, np.full(b - a, 7), names=names[a:b], input_range=(0.0, 1.0))
    return made


def tasks(**options: Any) -> ClassificationTasks:
    return ClassificationTasks(pools(), **{"way": 3, "shot": 2, "query": 2, "seed": 5, **options})


def plain(x: Any) -> Any:
    """Prepare bytes as the pools do."""
    return torch.as_tensor(x).float() / 255


class Ungathered:
    """The same tasks as a view that only samples."""

    def __init__(self, of: ClassificationTasks) -> None:
        self.of, self.spec = of, of.spec

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        return self.of.sample(split, indices)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path / "cache"))
    registered, loaded = dict(default._registered), dict(default._loaded)
    yield
    default._registered, default._loaded = registered, {**default._loaded, **loaded}


# --- The same episodes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("below", [tasks, lambda: Ungathered(tasks())], ids=["gathered", "sampled"])
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_inputs_are_the_embeddings_of_the_episode_below(below: Any, split: str) -> None:
    """Everything else of the episode is the same; an embedding from the table equals one computed in the episode."""
    of, encoder = below(), Counting().eval()
    view = Embedded(of, encoder)
    expected, found = of.sample(split, [4, 5, 6]), view.sample(split, [4, 5, 6])
    with torch.no_grad():
        for part in ("support", "query"):
            x = getattr(expected, part).x
            z = encoder(x.flatten(0, 1)).view(*x.shape[:2], 5)
            assert torch.allclose(getattr(found, part).x, z, atol=1e-6)
            assert torch.equal(getattr(found, part).y, getattr(expected, part).y)
    for name in ("split", "indices", "seed"):
        assert getattr(found.origin, name) == getattr(expected.origin, name)
    assert torch.equal(torch.as_tensor(found.origin.classes), torch.as_tensor(expected.origin.classes))
    assert found.support.way == expected.support.way


def test_spec_has_the_length_of_an_embedding_and_no_range() -> None:
    """Embeddings may have any values, and everything else of the tasks stays."""
    view = Embedded(tasks(), Counting())
    assert view.spec == attrs.evolve(tasks().spec, input_shape=(5,), input_range=None)
    assert view.seed == 5
    assert view.fingerprint.startswith(tasks().fingerprint)
    assert Embedded(tasks(), Counting(1)).fingerprint != view.fingerprint


def test_unlabelled_examples_are_embedded_too() -> None:
    of = sample_tasks.classification(way=3, shot=2)
    sampled = of.sample("test", [0, 1])
    unlabelled = torch.randn(2, 4, 6)

    class Semi(Ungathered):
        def sample(self, split: str, indices: Sequence[int]) -> Episode:
            return attrs.evolve(sampled, support=attrs.evolve(sampled.support, unlabelled=unlabelled))

    net = nn.Linear(6, 2)
    found = Embedded(Semi(of), net).sample("test", [0, 1]).support.unlabelled  # type: ignore[arg-type]
    assert found is not None
    with torch.no_grad():
        assert torch.allclose(found, net(unlabelled), atol=1e-6)


def test_a_view_may_lie_above_and_below() -> None:
    """Embeddings of embeddings, and a pool of a view, work as those of any tasks."""
    twice = Embedded(Embedded(tasks(), Counting()), nn.Linear(5, 2))
    assert twice.sample("test", [0]).query.x.shape == (1, 6, 2)
    again = ClassificationTasks({"test": twice.pool("test")}, way=2, shot=1, query=1)
    assert again.sample("test", [0]).support.x.shape == (1, 2, 2)


def test_pool_has_the_classes_below_with_embeddings() -> None:
    """Rows point into a table that has the examples of this split alone."""
    view = Embedded(tasks(), Counting().eval())
    below, pool = pools()["val"], view.pool("val")
    assert pool.names == below.names
    assert pool.x.shape == (21, 5)
    for c in range(3):
        with torch.no_grad():
            assert torch.allclose(pool.gather(pool.rows[c]), view.encoder(below.gather(below.rows[c])), atol=1e-6)


def test_padded_rows_stay_padded() -> None:
    """Classes of different sizes have rows that end with -1, which must not become a row of the table."""
    x = torch.arange(10.0).view(10, 1)
    pool = Pool(x, np.array([[7, 2, 9], [0, 4, -1]]), np.array([3, 2]))
    view = Embedded(ClassificationTasks({"test": pool}, way=2, shot=1, query=1), nn.Identity())
    assert view.pool("test").x[view.pool("test").rows[0]].ravel().tolist() == [7, 2, 9]
    assert view.pool("test").rows[1].tolist() == [0, 2, -1]
    assert set(view.sample("test", range(50)).query.x.ravel().tolist()) <= {7, 2, 9, 0, 4}


# --- Computed once ----------------------------------------------------------------------------------------------------


def test_each_example_is_embedded_once() -> None:
    """Splits that share a table do not embed the rows of the others, and episodes embed nothing."""
    view = Embedded(tasks(), Counting(), batch=4)
    counted(view)
    view.sample("test", range(50))
    assert counted(view) == 21
    view.sample("test", range(50, 100))
    view.pool("test")
    assert counted(view) == 0
    view.sample("train", [0])
    assert counted(view) == 42


def test_a_second_process_reads_the_table() -> None:
    """Only a few examples are embedded again, to compare them."""
    first = Embedded(tasks(), Counting())
    expected = first.sample("test", [0]).query.x
    second = Embedded(tasks(), Counting())
    counted(second)
    assert torch.equal(second.sample("test", [0]).query.x, expected)
    assert counted(second) == 3


@pytest.mark.parametrize(
    "other",
    [
        {"encoder": Counting(1)},
        {"encoder": nn.Sequential(Counting(), nn.ReLU())},
        {"backend": kshot.backend("cpu", precision="bfloat16")},
    ],
    ids=["weights", "structure", "precision"],
)
def test_another_encoder_has_another_table(tmp_path: Path, other: Any) -> None:
    """Else the embeddings of one would be used for the other."""
    Embedded(tasks(), Counting()).sample("test", [0])
    Embedded(tasks(), **{"encoder": Counting(), **other}).sample("test", [0])
    assert len(list(tmp_path.glob("cache/embedded/*.table"))) == 2


def test_other_options_with_the_same_weights_have_another_table(tmp_path: Path) -> None:
    """An option may change what is computed although no weight shows it."""

    class Scaled(Counting):
        def __init__(self, spec: kshot.TaskSpec, *, by: float = 1.0) -> None:
            super().__init__()
            self.by = by

        def forward(self, x: Tensor) -> Tensor:
            return self.by * super().forward(x)

    kshot.register(Scaled, group="encoders")
    one, two = (
        Embedded(tasks(), kshot.encoder("scaled", tasks().spec, by=by)).sample("test", [0]).query.x for by in (1, 2)
    )
    assert torch.allclose(two, 2 * one)
    assert len(list(tmp_path.glob("cache/embedded/*.table"))) == 2


def test_a_table_of_changed_code_is_computed_again(caplog: pytest.LogCaptureFixture) -> None:
    """A module has the same weights and the same name after its author has changed its code."""
    Embedded(tasks(), Counting()).sample("test", [0])
    later = Counting()
    later.__class__ = type("Counting", (Counting,), {"forward": lambda self, x: 1 + Counting.forward(self, x)})
    with caplog.at_level(logging.WARNING, "kshot.runs"):
        found = Embedded(tasks(), later).sample("test", [0]).query.x
    assert torch.allclose(found, Embedded(Ungathered(tasks()), later).sample("test", [0]).query.x, atol=1e-6)
    assert "has other embeddings than this encoder" in caplog.text


def test_other_examples_have_another_table(tmp_path: Path) -> None:
    """A folder of the same shape with one changed picture."""
    changed = pools()
    x = changed["test"].x.clone()
    x[changed["test"].rows[0, 0]] ^= 1
    changed["test"] = attrs.evolve(changed["test"], x=x)
    Embedded(tasks(), Counting()).sample("test", [0])
    Embedded(ClassificationTasks(changed, way=3, query=2), Counting()).sample("test", [0])
    assert len(list(tmp_path.glob("cache/embedded/*.table"))) == 2


# --- The encoder stays ------------------------------------------------------------------------------------------------


def test_the_user_s_module_is_not_changed() -> None:
    """It is used in evaluation mode, so dropout is off, and keeps the mode that it has."""
    module = Counting().train()
    view = Embedded(tasks(), module)
    assert module.training
    assert module.count == 0
    assert torch.equal(view.sample("test", [0]).query.x, Embedded(tasks(), module.eval()).sample("test", [0]).query.x)
    assert not view.sample("test", [0]).query.x.requires_grad
    assert not view.sample("test", [0]).query.x.is_inference()


# --- Predictions ------------------------------------------------------------------------------------------------------


@kshot.registry.default.register_preparation
def bytes_to_inputs(raw: Any) -> Tensor:
    """Prepare bytes as the pools have them."""
    return torch.as_tensor(raw).float() / 255


def encoder_of(seed: int) -> Any:
    def known(spec: kshot.TaskSpec, *, scale: float = 1.0) -> nn.Module:
        module = Counting(seed)
        with torch.no_grad():
            module.weight.mul_(scale)
        return module

    return known


def test_preparation_embeds_by_the_plugin_s_name() -> None:
    """It is a plain value, and embeds as the view does."""
    kshot.register(encoder_of(0), name="known", group="encoders")
    of = tasks(prepare=Preparation.of(bytes_to_inputs))
    view = Embedded(of, kshot.encoder("known", of.spec, scale=2.0))
    raw = torch.randint(0, 256, (4, 1, 3, 4), generator=torch.Generator().manual_seed(8)).to(torch.uint8)
    how = view.preparation
    assert how is not None
    assert torch.equal(how(raw), view.prepare(raw))
    stored = kshot.registry.default.preparation(how.to_dict())
    assert torch.equal(stored(raw), view.prepare(raw))


def test_other_weights_are_refused_at_prediction() -> None:
    """A plugin may be installed in another version, whose embeddings the learner does not know."""
    kshot.register(encoder_of(0), name="known", group="encoders")
    of = tasks(prepare=Preparation.of(bytes_to_inputs))
    how = Embedded(of, kshot.encoder("known", of.spec)).preparation
    assert how is not None
    kshot.register(encoder_of(1), name="known", group="encoders")
    with pytest.raises(DataError, match=r"encoder 'known': got weights with the digest \w{32}, expected \w{32}"):
        how(torch.zeros(1, 1, 3, 4))


def test_what_can_not_be_stored_is_none() -> None:
    """A module object, an import path and tasks that can't store their preparation."""
    kshot.register(encoder_of(0), name="known", group="encoders")
    portable = tasks(prepare=Preparation.of(bytes_to_inputs))
    assert Embedded(portable, Counting()).preparation is None
    assert Embedded(tasks(prepare=plain), kshot.encoder("known", tasks().spec)).preparation is None
    assert Embedded(Ungathered(portable), kshot.encoder("known", tasks().spec)).preparation is None


def test_a_preparation_has_no_data() -> None:
    """It stands for tasks of which only the spec is known."""
    assert prepared.__module__ == "kshot.runs.embedded"  # its name is stored in runs
    kshot.register(encoder_of(0), name="known", group="encoders")
    from kshot.runs.embedded import _view

    how = Embedded(tasks(prepare=Preparation.of(bytes_to_inputs)), kshot.encoder("known", tasks().spec)).preparation
    assert how is not None
    options = {name: how.options[name] for name in ("encoder", "options", "spec", "digest")}
    with pytest.raises(DataError, match="without data"):
        _view(**options).of.sample("test", [0])  # type: ignore[arg-type]


# --- Wrong inputs -----------------------------------------------------------------------------------------------------


class Nan(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) / (0 * x.flatten(1).sum(1, keepdim=True))


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (Nan(), "got embeddings from Nan that are NaN or infinite, expected finite numbers"),
        (nn.Identity(), r"got shape \[1, 1, 3, 4\] from Identity, expected embeddings \[1, D\]"),
        (nn.Conv2d(3, 2, 1), r"got inputs of shape \[1, 3, 4\], with which Conv2d raised RuntimeError"),
        (nn.Sequential(nn.Flatten(), nn.LSTM(12, 2)), r"got tuple from Sequential, expected embeddings"),
    ],
    ids=["nan", "maps", "channels", "tuple"],
)
def test_an_encoder_that_does_not_embed_is_refused(encoder: nn.Module, message: str) -> None:
    """This is before anything else is computed."""
    with pytest.raises(DataError, match=message):
        Embedded(tasks(), encoder)


def test_nan_of_an_example_is_refused() -> None:
    """A picture that is all 0 may have a defined embedding where another has none."""

    class Sometimes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1).log() if x.any() else x.flatten(1)

    with pytest.raises(DataError, match="NaN or infinite"):
        Embedded(tasks(), Sometimes()).sample("train", range(20))


def test_wrong_options_are_refused() -> None:
    with pytest.raises(OptionError, match="got batch 0, expected at least 1"):
        Embedded(tasks(), Counting(), batch=0)
    with pytest.raises(MisfitError, match="got objective tasks, expected tasks whose examples have inputs"):
        Embedded(sample_tasks.example("objective"), Counting())
    with pytest.raises(MisfitError, match="got Ungathered without a pool"):
        Embedded(Ungathered(tasks()), Counting()).pool("test")
    with pytest.raises(MisfitError, match="got Ungathered without prepare"):
        Embedded(Ungathered(tasks()), Counting()).prepare([])


# --- Options of views -------------------------------------------------------------------------------------------------


def test_options_go_to_the_tasks_that_have_them() -> None:
    """``way`` is one of the tasks below; ``batch`` is the view's; a name that nobody knows stays where it is."""
    kshot.register(sample_tasks.classification, name="sampled", group="tasks")
    table = {"name": "embedded", "of": "sampled", "way": 3, "batch": 8}
    assert lowered(table) == {"name": "embedded", "of": {"name": "sampled", "way": 3}, "batch": 8}
    assert lowered({**table, "wya": 1}) == {**table, "wya": 1}
    deep = {"name": "embedded", "of": table, "shot": 2}
    assert lowered(deep)["of"]["of"] == {"name": "sampled", "way": 3, "shot": 2}
    assert lowered({"name": "sampled", "way": 3}) == {"name": "sampled", "way": 3}


def test_options_that_suit_yield_to_those_of_the_user() -> None:
    """Also to those that the user gave at the view, and tasks without such options are not changed."""
    kshot.register(sample_tasks.classification, name="sampled", group="tasks")
    best = {"way": 4, "shot": 3, "size": 224}
    assert suited({"name": "sampled", "shot": 1}, best) == {"name": "sampled", "way": 4, "shot": 1}
    found = suited({"name": "embedded", "of": "sampled", "way": 2}, best)
    assert lowered(found)["of"] == {"name": "sampled", "way": 2, "shot": 3}
    assert suited({"name": "sampled"}, {}) == {"name": "sampled"}
