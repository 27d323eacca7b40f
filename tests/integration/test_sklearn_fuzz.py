"""The classifier of kshot-sklearn takes arrays and tables of any form, and refuses what is none as scikit-learn does.

Forms are drawn at random, with fixed seeds.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch

import kshot
from kshot.testing import sample_learner, sample_tasks
from kshot_sklearn import FewShotClassifier

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

INPUTS = {"classifier": (2, 250)}
"""How many seeds each test has, and how many inputs for each seed."""

X = np.array([[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [1, 1, 2, 3, 4, 5], [5, 4, 3, 2, 2, 0]])
Y = np.array([0, 1, 0, 1])


def forms() -> dict[str, tuple[Any, bool]]:
    """Return examples in many forms, and whether they are the numbers of ``X``."""
    own = X.astype(float)
    table: dict[str, tuple[Any, bool]] = {
        **{code: (X.astype(code), True) for code in ("i1", "i8", "u2", "f2", "f4", "f8", ">f4", ">i2", "g")},
        "flipped": (own[::-1].copy()[::-1], True),
        "in Fortran's order": (np.asfortranarray(own), True),
        "list": (X.tolist(), True),
        "tuple": (tuple(map(tuple, X.tolist())), True),
        "objects": (own.astype(object), True),
        "tensor": (torch.from_numpy(own), True),
        "list of arrays": (list(own), True),
        "masked nowhere": (np.ma.array(own, mask=False), True),
        "read-only": (np.frombuffer(own.tobytes()).reshape(4, 6), True),
        "nan": (np.where(X == 0, np.nan, X), False),
        "infinite": (np.where(X == 0, np.inf, X), False),
        "too large": (np.where(X == 0, 1e300, X), False),
        "complex": (own + 1j, False),
        "text": (own.astype(str), False),
        "words": (np.full((4, 6), "a"), False),
        "one axis": (own[:, 0], False),
        "one example": (own[0], False),
        "scalar": (3.0, False),
        "empty": (own[:0], False),
        "no features": (own[:, :0], False),
        "other features": (own[:, :5], False),
        "fewer": (own[:3], False),
        "ragged": ([[1.0], [1.0, 2.0]], False),
        "None": (None, False),
        "text alone": ("text", False),
        "dict": ({"a": 1}, False),
        "object": (object(), False),
        "sparse": (scipy.sparse.csr_matrix(own), False),
        "generator": ((row for row in own), False),
        "Nones": ([[None] * 6] * 4, False),
        "dates": (np.zeros((4, 6), "M8[s]"), False),
        "graph": (torch.from_numpy(own).requires_grad_(), True),
        "meta": (torch.zeros(4, 6, device="meta"), False),
    }
    circle: list[Any] = [own[0]]
    circle.append(circle)
    table["circle"] = (circle, False)
    try:
        import pandas
    except ImportError:
        return table
    frame = pandas.DataFrame(own, columns=list("abcdef"))
    return table | {
        "frame": (frame, True),
        "frame of Int64": (frame.astype("Int64"), True),
        "frame with NA": (frame.astype("Int64").mask(frame == 0), False),
        "frame of categories": (frame.astype("category"), True),
        "frame of text": (frame.astype(str).map(lambda v: f"a{v}"), False),
        "series": (frame["a"], False),
    }


def labels() -> dict[str, tuple[Any, bool]]:
    """Return labels in many forms, and whether they are two classes in the order of ``Y``."""
    table: dict[str, tuple[Any, bool]] = {
        "int": (Y, True),
        "list": (Y.tolist(), True),
        "text": (np.array(["a", "b"])[Y], True),
        "objects": (np.array(["a", "b"], object)[Y], True),
        "bool": (Y.astype(bool), True),
        "float": (Y.astype(float), True),
        "others": (Y * 7 - 3, True),
        "tensor": (torch.from_numpy(Y), True),
        "column": (Y[:, None], True),
        "u8": (Y.astype("u1"), True),
        ">i4": (Y.astype(">i4"), True),
        "flipped": (Y[::-1].copy()[::-1], True),
        "one class": (Y * 0, False),
        "fractions": (Y + 0.5, False),
        "nan": (np.where(Y == 0, np.nan, 1.0), False),
        "None": (None, False),
        "fewer": (Y[:2], False),
        "more": (np.append(Y, 0), False),
        "empty": (Y[:0], False),
        "two columns": (np.eye(2)[Y], False),
        "scalar": (1, False),
        "mixed": ([0, "a", 0, "a"], False),
        "Nones": ([None] * 4, False),
        "complex": (Y + 1j, False),
        "lists": ([[0], [1, 2], [0], [1]], False),
        "infinite": (np.where(Y == 0, np.inf, 1.0), False),
    }
    try:
        import pandas
    except ImportError:
        return table
    series = pandas.Series(Y, index=[9, 8, 7, 6])
    return table | {
        "series": (series, True),
        "categories": (series.map({0: "a", 1: "b"}).astype("category"), True),
        "NA": (series.astype("Int64").mask(series == 0), False),
    }


def is_right(probabilities: Any, plain: Any) -> None:
    """Assert that probabilities are those of the plain numbers."""
    assert probabilities.shape == plain.shape
    assert np.isfinite(probabilities).all()
    np.testing.assert_allclose(probabilities, plain, atol=1e-5)


@pytest.mark.parametrize("seed", range(INPUTS["classifier"][0]))
def test_a_classifier_predicts_as_for_plain_inputs(seed: int, trials: Any) -> None:
    """A refusal is a ValueError or a TypeError, as scikit-learn's are, or an error of kshot."""
    draw, spec = random.Random(f"classifier {seed}"), sample_tasks.classification().spec
    torch.manual_seed(0)
    model = kshot.Trained(sample_learner.NearestMean(spec), spec)
    for i in range(INPUTS["classifier"][1]):
        trained = draw.choice([None, model])
        plain = FewShotClassifier(trained).fit(X.astype(float), Y).predict_proba(X.astype(float))
        (x_name, (x, x_good)), (y_name, (y, y_good)), (q_name, (q, q_good)) = (
            ("plain", (X.astype(float), True)),
            ("int", (Y, True)),
            ("plain", (X.astype(float), True)),
        )
        which = draw.randrange(4)
        if which in (0, 3):
            x_name, (x, x_good) = draw.choice(sorted(forms().items(), key=lambda item: item[0]))
        if which in (1, 3):
            y_name, (y, y_good) = draw.choice(sorted(labels().items(), key=lambda item: item[0]))
        if which == 2:
            q_name, (q, q_good) = draw.choice(sorted(forms().items(), key=lambda item: item[0]))
        # Any number of examples may be predicted, and the classifier without a learner takes 1e300.
        free = {"fewer"} | ({"too large"} if trained is None else set())

        def work(x: Any = x, y: Any = y, q: Any = q, trained: Any = trained) -> Any:
            return FewShotClassifier(trained).fit(x, y).predict_proba(q)

        good = x_good and y_good and q_good
        loose = (
            not good
            and y_name in ("mixed", "int")
            and (
                y_name == "mixed"
                or q_name in free
                or x_name in free
                or x_name in ("other features", "text")
                or q_name == "text"
            )
        )
        right = (
            (lambda p, plain=plain: is_right(p, plain))
            if good
            else (lambda p: bool(np.isfinite(p).all()))
            if loose
            else None
        )
        label = f"{seed}/{i}, {'model' if trained else 'baseline'}, x {x_name}, y {y_name}, q {q_name}"
        trials.attempt(label, work, right, others=(ValueError, TypeError), must=good and y_name not in ("tensor",))
    trials.finish(INPUTS["classifier"][1], refused=0.2, accepted=0.2)
