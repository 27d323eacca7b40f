"""Arrays and labels of every form are read as a plain conversion reads them, or refused by name.

The forms are drawn at random, with fixed seeds. What is right is computed from the numbers before they get their form.
"""

from __future__ import annotations

import collections
import decimal
import fractions
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import kshot
from kshot import Episode, Examples, Needs, Pool, Support, TaskSpec, Trained
from kshot.arrays import as_inputs
from kshot.checks import check_episode
from kshot.testing import sample_learner, sample_tasks

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # torch warns of its less usual tensors

INPUTS = {"inputs": (4, 300), "labels": (3, 300), "trained": (3, 250), "episodes": (3, 150), "specs": (3, 200),
          "needs": (2, 150)}  # fmt: skip
"""How many seeds each test has, and how many inputs for each seed."""

Array = NDArray[Any]


class WithArray:
    """An object that numpy reads by its method."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


class Endless:
    """An object like a data set: it has items for ever."""

    def __getitem__(self, index: int) -> int:
        return index


def own(value: Array) -> Array:
    """Return the array in a subclass."""
    return value.view(type("Own", (np.ndarray,), {}))


def circular() -> list[Any]:
    """Return a list that contains itself."""
    value: list[Any] = [1.0]
    value.append(value)
    return value


def deep(levels: int) -> list[Any]:
    """Return lists within lists."""
    value: list[Any] = [1.0]
    for _ in range(levels):
        value = [value]
    return value


def objects(x: Array) -> Array:
    """Return the array with its numbers as Python objects."""
    return x.astype(object)


def rows(x: Array) -> Array:
    """Return an array of objects, each of them a row."""
    value = np.empty(len(x), object)
    for i, row in enumerate(x):
        value[i] = row
    return value


Form = Callable[[Array], Any]

NUMPY = ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "g", ">i2", ">i4", ">f4", ">f8", ">u8")
TORCH = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "bfloat16",
         "float32", "float64", "float8_e4m3fn", "float8_e5m2")  # fmt: skip

LAYOUTS: dict[str, Form] = {
    "flipped": lambda x: np.flip(np.ascontiguousarray(np.flip(x))),
    "flipped in one axis": lambda x: x[::-1].copy()[::-1],
    "in Fortran's order": np.asfortranarray,
    "every second": lambda x: np.repeat(x, 2, axis=0)[::2],
    "over a larger array": lambda x: np.pad(x, [(1, 1)] * x.ndim)[(slice(1, -1),) * x.ndim],
    "read-only": lambda x: np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape),
    "of a subclass": own,
    "masked nowhere": lambda x: np.ma.array(x, mask=np.zeros(x.shape, bool)),
    "with __array__": WithArray,
    "as objects": objects,
    "as a list": lambda x: x.tolist(),
    "as a tuple": lambda x: tuple(x.tolist()),
    "as a list of arrays": list,
    "as rows of objects": rows,
    "as a list of tensors": lambda x: [torch.from_numpy(np.array(row)) for row in x],
    "as a deque": lambda x: collections.deque(x.tolist()),
    "as a tensor": lambda x: torch.from_numpy(x.copy()),
    "as a memoryview": lambda x: memoryview(np.ascontiguousarray(x)),
}
"""Forms of an array that change no number."""

TENSORS: dict[str, Callable[[Tensor], Tensor]] = {
    "as it is": lambda t: t,
    "flipped": lambda t: t.flip(0).flip(0),
    "not contiguous": lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
    "with a graph": lambda t: t.float().requires_grad_() * 1,
    "a parameter": lambda t: nn.Parameter(t.float()),
    "sparse": lambda t: t.float().to_sparse(),
    "sparse, by rows": lambda t: t.float().to_sparse_csr() if t.ndim == 2 else t.float(),
    "of a negative view": lambda t: torch.complex(t.float() * 0, -t.float()).conj().imag,
    "in mkldnn's layout": lambda t: t.float().to_mkldnn(),
    "quantised": lambda t: torch.quantize_per_tensor(t.float(), 0.5, 1, torch.qint32),
    "expanded": lambda t: t[None].expand(3, *t.shape)[1],
}
"""Forms of a tensor that change no number."""

NO_NUMBERS: dict[str, Form] = {
    "complex": lambda x: x.astype(complex),
    "a complex tensor": lambda x: torch.from_numpy(x.astype(np.complex64)),
    "text": lambda x: x.astype(str),
    "bytes": lambda x: x.astype("S8"),
    "dates": lambda x: x.astype("M8[s]"),
    "durations": lambda x: x.astype("m8[s]"),
    "records": lambda x: np.zeros(x.shape, [("a", "f4"), ("b", "i4")]),
    "raw bytes": lambda x: np.zeros(x.shape, "V3"),
    "objects": lambda x: np.full(x.shape, None),
    "text as objects": lambda x: x.astype(str).astype(object),
    "masked": lambda x: np.ma.array(x, mask=np.ones(x.shape, bool)),
    "on no device": lambda x: torch.from_numpy(x).to("meta"),
    "nested": lambda x: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
    "jagged": lambda x: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)], layout=torch.jagged),
    "fractions": lambda x: [fractions.Fraction(int(v), 3) for v in x.flat],
    "decimals": lambda x: [decimal.Decimal(int(v)) for v in x.flat],
    "ragged": lambda x: [[1.0], [1.0, 2.0]],
    "ragged tensors": lambda x: [torch.zeros(1), torch.zeros(2)],
    "ragged objects": lambda x: [np.zeros(2), np.zeros(3)],
    "circular": lambda x: circular(),
    "deep": lambda x: deep(80),
    "very deep": lambda x: deep(100_000),
    "a generator": lambda x: (v for v in x),
    "a map": lambda x: map(float, x.flat),
    "a set": lambda x: set(x.flat),
    "a dict": lambda x: dict(enumerate(x.flat)),
    "nothing": lambda x: None,
    "a word": lambda x: "0123",
    "a byte string": lambda x: b"0123",
    "an object": lambda x: object(),
    "a type": lambda x: float,
    "endless": lambda x: Endless(),
    "a list of nothing": lambda x: [None] * len(x),
    "a list with a hole": lambda x: [*x.tolist()[1:], None],
    "a list of dicts": lambda x: [{}] * len(x),
    "numbers and text": lambda x: [*x.tolist()[1:], "a"],
    "an array that fails": lambda x: WithArray(RuntimeError("lost")),
    "an array that is none": lambda x: WithArray("text"),
    "a huge range": lambda x: range(10**14),
    "not finite": lambda x: np.where(np.arange(x.size).reshape(x.shape) == 1, np.nan, x),
    "infinite": lambda x: np.where(np.arange(x.size).reshape(x.shape) == 1, -np.inf, x),
    "too large for float32": lambda x: np.where(np.arange(x.size).reshape(x.shape) == 1, 1e300, x),
    "too large in a list": lambda x: [[1e300] * 6] * len(x) if x.ndim == 2 else [1e300] * len(x),
    "an enormous whole number": lambda x: [10**400] * len(x),
    "an infinite tensor": lambda x: torch.from_numpy(np.where(x == x.flat[0], np.inf, x)),
    "too large in float64": lambda x: torch.from_numpy(np.where(x == x.flat[0], 1e300, x)),
}
"""What is no finite real numbers of one shape, in any form."""


def given(draw: random.Random, numbers: Array) -> tuple[str, Any, Array | None]:
    """Return small whole numbers in some form: a label, the value, and the numbers; None if they are no numbers.

    The numbers are uint8 if those of the form are, because 255 of these is 1.
    """
    how = draw.random()
    if how < 0.35:
        name = draw.choice(sorted(NO_NUMBERS))
        return name, NO_NUMBERS[name](numbers), None
    if how < 0.65:
        code = draw.choice(NUMPY)
        plain = numbers.astype(code)
        layout = draw.choice(sorted(LAYOUTS))
        if layout in ("as a tensor", "as a list of tensors", "as a memoryview") and code in ("g", ">f8", ">f4", ">i2"):
            code, plain = "f8", numbers.astype("f8")
        if layout in ("as a tensor", "as a list of tensors") and code.startswith(">"):
            code, plain = "i8", numbers
        value = LAYOUTS[layout](plain)
        lost = layout in ("as a list", "as a tuple", "as a deque", "as objects", "as rows of objects")
        return f"{code} {layout}", value, plain.astype(np.float64) if lost or plain.dtype != np.uint8 else plain
    dtype = draw.choice(TORCH)
    form = "as it is" if dtype.startswith("float8") else draw.choice(sorted(TENSORS))
    tensor = torch.from_numpy(numbers).to(getattr(torch, dtype))
    plain = tensor.double().numpy()
    value = TENSORS[form](tensor)
    return f"{dtype} {form}", value, plain.astype(np.uint8) if value.dtype == torch.uint8 else plain


def plain_inputs(numbers: Array) -> Array:
    """Return numbers as float32 inputs: 255 of uint8 is 1."""
    scale = 255 if numbers.dtype == np.uint8 else 1
    return (numbers.astype(np.float64) / scale).astype(np.float32)


def equal(given: Any, expected: Array) -> bool:
    """Return whether a tensor has these values and this shape, except for the last digit."""
    return (
        isinstance(given, Tensor)
        and given.layout == torch.strided
        and not given.requires_grad
        and tuple(given.shape) == expected.shape
        and np.allclose(given.numpy(), expected, rtol=1e-6, atol=0)
    )


SHAPES = ((6,), (6, 3), (6, 1), (6, 1, 4, 4), (6, 2, 2), (1, 3), (0, 3), (6, 0), (0,), ())


@pytest.mark.parametrize("seed", range(INPUTS["inputs"][0]))
def test_inputs_are_those_of_a_plain_conversion(seed: int, trials: Any) -> None:
    """The same numbers give the same inputs, whatever form they are in."""
    draw = random.Random(f"inputs {seed}")
    for i in range(INPUTS["inputs"][1]):
        shape = draw.choice(SHAPES[: 6 if draw.random() < 0.9 else None])
        numbers = np.array([draw.randrange(6) for _ in range(math.prod(shape))], np.int64).reshape(shape)
        if min(shape, default=0) < 1 or len(shape) < 1:  # no forms of these
            label, value, plain = f"{shape}", numbers.astype(np.float32), numbers.astype(np.float32)
        else:
            label, value, plain = given(draw, numbers)
        n, sink = len(numbers) if shape else 0, draw.randrange(4 if value is None else 5)
        y = np.arange(max(n, 1)) % 2 if n > 1 else np.zeros(max(n, 1), np.int64)
        use: Callable[[], Any]
        if sink == 0:

            def use(value: Any = value, y: Any = y, n: int = n) -> Any:
                return Pool.of(value, y).gather(np.arange(n))

        elif sink == 1:

            def use(value: Any = value, y: Any = y) -> Any:
                return Support.of(value, y).x[0]

        elif sink == 2:

            def use(value: Any = value, n: int = n) -> Any:
                return Support.of(np.zeros((n, 2)), value, way=None).y[0]

        elif sink == 3:

            def use(value: Any = value) -> Any:
                return as_inputs(value)

        else:

            def use(value: Any = value, n: int = n) -> Any:
                return Pool.of(np.zeros((max(n, 1), 2)), np.arange(max(n, 1)), semantics=value).semantics

        fits = (sink != 3 and n > 0 and (sink != 4 or len(shape) == 2)) or sink == 3
        expected = None if plain is None or not fits else plain_inputs(plain)
        right = None if expected is None else lambda got, expected=expected: equal(got, expected)
        trials.attempt(f"{seed}/{i}, {label} {shape} for {sink}", use, right)
    trials.finish(INPUTS["inputs"][1], refused=0.2, accepted=0.3)


@pytest.mark.parametrize("seed", range(INPUTS["labels"][0]))
def test_labels_are_those_of_a_plain_conversion(seed: int, trials: Any) -> None:
    """Class numbers of any type are accepted if they are whole and complete."""
    draw = random.Random(f"labels {seed}")
    for i in range(INPUTS["labels"][1]):
        n, classes = draw.randrange(1, 9), draw.randrange(1, 4)
        numbers = np.array([draw.randrange(classes) for _ in range(n)], np.int64)
        label, value, plain = given(draw, numbers)
        wrong = draw.random()
        if plain is not None and wrong < 0.2:
            numbers = np.unique(numbers, return_inverse=True)[1]
            value, plain, label = draw.choice(unfit(numbers)), None, "unfit"
        complete = plain is not None and sorted(set(plain.tolist())) == list(range(len(set(plain.tolist()))))
        right = None
        if complete and plain is not None:
            expected = plain.astype(np.int64)

            def right(got: Any, expected: Array = expected) -> bool:
                return bool(np.array_equal(got, expected))

        x = np.arange(2.0 * n).reshape(n, 2)

        def use(value: Any = value, x: Array = x, pooled: bool = i % 2 == 0) -> Any:
            if not pooled:
                return Support.of(x, value).y[0].numpy()
            ids, y = Pool.of(x, value).table()
            labels = np.full(len(x), -1)
            labels[ids] = y
            return labels

        trials.attempt(f"{seed}/{i}, {label} {numbers.tolist()}", use, right)
    trials.finish(INPUTS["labels"][1], refused=0.2, accepted=0.2)


def unfit(y: Array) -> list[Any]:
    """Return labels that are not 0..N-1, one for each example, of labels that are."""
    return [
        y + 1, y - 1, y * 2 + 1, y + 0.5, y[:, None], y[None, None], np.eye(4)[y], np.append(y, 0), y[:0], 0,
        np.int64(0), y.astype("u8") + np.uint64(2**63), np.full(len(y), 1e300), np.full(len(y), -1),
        torch.full((len(y),), 2.0**40), [[0], [0, 1]], np.full(len(y), np.iinfo("i8").min),
    ]  # fmt: skip


class Embedding(sample_learner.NearestMean):
    """The sample learner with embeddings."""

    def embed(self, x: Tensor) -> Tensor:
        z: Tensor = self.embedding(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        return z


@pytest.mark.parametrize("seed", range(INPUTS["trained"][0]))
def test_a_trained_learner_predicts_as_for_plain_inputs(seed: int, trials: Any) -> None:
    """Support, queries and examples to embed are read by the same rule."""
    draw = random.Random(f"trained {seed}")
    torch.manual_seed(seed)
    model = Trained(Embedding(sample_tasks.classification().spec), sample_tasks.classification().spec)
    good = np.arange(18.0).reshape(3, 6) % 7
    for i in range(INPUTS["trained"][1]):
        shape = draw.choice([(3, 6), (1, 6), (2, 6), (3, 6), (6,), (3, 5), (3, 6, 1), (0, 6)])
        numbers = np.array([draw.randrange(6) for _ in range(math.prod(shape))], np.int64).reshape(shape)
        label, value, plain = given(draw, numbers) if math.prod(shape) else ("empty", numbers.astype(float), numbers)
        fits = plain is not None and shape[1:] == (6,)
        work, right = uses(model, draw.randrange(4), value, plain_inputs(plain) if fits and plain is not None else None)
        trials.attempt(f"{seed}/{i}, {label} {shape}", lambda work=work, value=value: work(value, good), right)
    trials.finish(INPUTS["trained"][1], refused=0.2, accepted=0.2)


def uses(
    model: Trained, way: int, value: Any, plain: Array | None
) -> tuple[Callable[[Any, Any], Any], Callable[[Any], Any] | None]:
    """Return a use of a trained learner, and the check that it gives the same for the plain inputs."""

    def query(value: Any, good: Array) -> Any:
        return model.predict({"a": good, "b": good + 1}, value).probabilities

    def support(value: Any, good: Array) -> Any:
        return model.predict({"a": good, "b": value}, good).probabilities

    def embed(value: Any, good: Array) -> Any:
        return model.embed(value)

    def distances(value: Any, good: Array) -> Any:
        return model.distances(value, good[: len(value)] if hasattr(value, "__len__") else good)

    work = (query, support, embed, distances)[way]
    if plain is None or (way == 1 and not len(plain)):
        return work, None
    good = np.arange(18.0).reshape(3, 6) % 7

    def right(got: Any) -> bool:
        if not len(plain):
            return len(got) == 0
        expected = work(plain, good)
        return bool(np.isfinite(got).all() and got.shape == expected.shape and np.allclose(got, expected, rtol=1e-4))

    return work, right


# --- Episodes of somebody else's tasks -------------------------------------------------------------------------------

SPECS = {
    "classification": TaskSpec(kind="classification", input_shape=(3,), way=2, shot=2, query=2),
    "regression": TaskSpec(kind="regression", input_shape=(3,), target_shape=(2,), shot=4, query=4),
    "sequence": TaskSpec(kind="sequence", input_shape=(3,), way=2),
}


def episode_of(kind: str) -> Episode:
    """Return a right episode of a kind, with B = 2."""
    generator = torch.Generator().manual_seed(0)
    x, labels = torch.rand(2, 4, 3, generator=generator), torch.tensor([[0, 0, 1, 1]] * 2)
    key = torch.tensor([5, 6])
    if kind == "classification":
        return Episode(Support(x, labels, key=key, way=2), Examples(x, labels.flip(1)))
    if kind == "regression":
        return Episode(Support(x, x[..., :2], key=key), Examples(x, x[..., 1:]))
    return Episode(Support(x[:, :0], labels[:, :0], key=key, way=2), Examples(x, labels))


def hostile_tensors(t: Tensor) -> list[Any]:
    """Return what is no tensor of this type, shape and range."""
    return [
        None, 3, "text", t.tolist(), t.numpy(), t[0], t[:1], t[None], t[..., None], t.double(), t.half(), t.bool(),
        t.to(torch.complex64), t.to(torch.uint8), t + 7, t - 7, t * math.nan, t.float() + math.inf, t[..., :0],
        t.float() * 0.5 + 0.25, t.float().to_sparse(), t.to("meta"), t.new_zeros(0), t.new_zeros(2, 0, 3),
        t.new_zeros(2, 9, 9), torch.zeros(()), [t, t], {"x": t}, t.float().to_mkldnn(), t.to(torch.int32),
        t.repeat(2, *[1] * (t.ndim - 1)), object(), torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
        torch.quantize_per_tensor(t.float(), 1.0, 0, torch.qint32), t.mT if t.ndim > 1 else t.flip(0),
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["classification", "regression", "sequence"])
def test_an_episode_of_other_tasks_is_right_or_refused(kind: str, trials: Any) -> None:
    """The engine checks the episodes of tasks that it doesn't know."""
    import attrs

    spec, draw = SPECS[kind], random.Random(f"episodes {kind}")
    plain = episode_of(kind)
    for i in range(INPUTS["episodes"][1]):
        episode = episode_of(kind)
        place, field = draw.choice(
            [("support", "x"), ("support", "y"), ("query", "x"), ("query", "y"), ("support", "key"), ("support", "way")]
        )
        value = getattr(getattr(episode, place), field)
        changed = draw.choice(hostile_tensors(value) if isinstance(value, Tensor) else [None, 0, 3, -1, "2", 2.5, [2]])
        episode = attrs.evolve(episode, **{place: attrs.evolve(getattr(episode, place), **{field: changed})})

        def work(episode: Episode = episode) -> Episode:
            check_episode(episode, spec, "their tasks")
            return episode

        def right(got: Episode) -> None:
            check_same_form(got, plain, kind)

        trials.attempt(f"{i}, {place}.{field} {str(changed)[:60]!r}", work, right, named="their tasks")
    trials.finish(INPUTS["episodes"][1], refused=0.4, accepted=0)


def check_same_form(got: Episode, plain: Episode, kind: str) -> None:
    """Assert that an accepted episode has strided tensors that a learner can compute with."""
    x = got.query.x
    assert isinstance(x, Tensor)
    assert x.layout == torch.strided
    for given, expected in ((got.support.x, plain.support.x), (got.query.x, plain.query.x)):
        assert isinstance(given, Tensor)
        assert given.dtype == torch.float32 or given.numel() == 0
        assert given.shape[2:] == expected.shape[2:] or given.numel() == 0
        assert bool(given.isfinite().all())
    assert isinstance(got.support.key, Tensor)
    assert len(got.support.key) == len(got.query.x) or got.query.x.numel() == 0
    if kind != "sequence":
        assert got.support.y.shape[:2] == got.support.x.shape[:2]
        assert got.query.y.shape[:2] == got.query.x.shape[:2]


# --- Specs -----------------------------------------------------------------------------------------------------------

VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2, 5, 10**20, 0.5, 2.0, -0.0, math.nan, math.inf, -math.inf, 1e300),
    *("", "x", "classification", "train", "5", b"5", [], [1], [2, 5], [5, 2], [1, 2, 3], (2, 5), (5, 2), (2,), (0, 1)),
    *([0.5], [None], ["a"], ["train", "train"], {}, {"a": 1}, set(), {1}, {"semantics"}, {"nonsense"}, object()),
    *(np.int64(3), np.float32(2.5), np.array([2, 5]), np.array(3), torch.tensor(3), torch.tensor([2, 5])),
    *(
        (-1,),
        (0,),
        (2**70,),
        (1.5,),
        ("a",),
        (3, -3),
        "33",
        ["train", 3],
        range(2),
        (math.nan, 1),
        (1, 0),
        (0, math.inf),
    ),
)


@pytest.mark.parametrize("seed", range(INPUTS["specs"][0]))
def test_a_spec_is_right_or_refused(seed: int, trials: Any) -> None:
    """A spec that is made can be stored and read again, and its numbers are those of Python."""
    draw = random.Random(f"specs {seed}")
    fields = [f.name for f in TaskSpec.__attrs_attrs__]  # type: ignore[attr-defined]
    for i in range(INPUTS["specs"][1]):
        values: dict[str, Any] = {"kind": "classification", "input_shape": (3,), "way": 5, "shot": 1, "query": 15}
        for name in draw.sample(fields, draw.choice([1, 1, 2])):
            values[name] = draw.choice(VALUES)
        if draw.random() < 0.1:
            values["extra"] = 1
        if draw.random() < 0.05:
            del values[draw.choice(sorted(values))]
        stored = i % 3 == 0

        def work(values: dict[str, Any] = values, stored: bool = stored) -> TaskSpec:
            return TaskSpec.from_dict(values) if stored else TaskSpec(**values)

        others = (
            () if stored else (TypeError,) if {"extra"} & {*values} or not {"kind", "input_shape"} <= {*values} else ()
        )
        trials.attempt(f"{seed}/{i}, {values!r:.200}", work, check_spec, named="TaskSpec", others=others)
    trials.finish(INPUTS["specs"][1], refused=0.3, accepted=0.05)


def check_spec(spec: TaskSpec) -> None:
    """Assert that a spec is made of plain values, in order and in range."""
    assert TaskSpec.from_json(spec.to_json()) == spec
    assert hash(spec) == hash(TaskSpec.from_json(spec.to_json()))
    assert all(type(v) is int and v >= 0 for v in (*spec.input_shape, *spec.target_shape))
    for name in ("way", "shot", "query", "rollouts"):
        value = getattr(spec, name)
        low, high = value if isinstance(value, tuple) else (value, value)
        assert low is None or (type(low) is int and type(high) is int and 0 <= low <= high), name
    assert type(spec.block) is int
    assert spec.block >= 1
    assert all(isinstance(split, str) for split in spec.splits)
    assert len(set(spec.splits)) == len(spec.splits) >= 1
    for limits in (spec.input_range, spec.target_range):
        assert limits is None or (limits[0] <= limits[1] and not math.isnan(sum(limits)))


@pytest.mark.parametrize("seed", range(INPUTS["needs"][0]))
def test_needs_are_right_or_refused(seed: int, trials: Any) -> None:
    """What a learner declares is compared with tasks, so a typing error must not be silently ignored."""
    draw = random.Random(f"needs {seed}")
    fields = [f.name for f in Needs.__attrs_attrs__]  # type: ignore[attr-defined]
    for i in range(INPUTS["needs"][1]):
        values = {name: draw.choice(VALUES) for name in draw.sample(fields, draw.choice([1, 1, 2]))}

        def right(needs: Needs) -> None:
            assert kshot.checks.mismatches(needs, SPECS["classification"]) is not None
            assert isinstance(needs.kinds, tuple)
            assert set(needs.kinds) <= set(SPECS)
            assert type(needs.rollouts) is int
            assert isinstance(needs.zero_shot, bool)
            assert hash(needs) == hash(needs)

        trials.attempt(f"{seed}/{i}, {values!r:.200}", lambda values=values: Needs(**values), right, named="Needs")
    trials.finish(INPUTS["needs"][1], refused=0.3)
