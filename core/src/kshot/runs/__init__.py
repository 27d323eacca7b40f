"""Train, evaluate and compare runs from Python; the commands (``kshot train``) call the same functions.

    run = kshot.runs.train("protonet", "omniglot", iterations=1000, seed=1)
    print(run)                                # the test's accuracy, with its 95 % interval
    run = kshot.runs.resume("runs/protonet-omniglot-1")
    print(kshot.runs.compare("runs/protonet-omniglot-1", "runs/maml-omniglot-1"))

Reading order: ``recipe`` (the configuration that a user gives), ``plan`` (the components that a run is built from),
``runner`` (train and evaluate a plan), ``small`` and ``baselines`` (what is added for folders), ``calls`` (the
functions above), ``run`` (their result), ``comparison`` (compare runs), ``cross_validation`` (runs on several divisions
of a folder), ``learners`` (load the learner of a run), ``trained`` (predict with a run), ``launch`` (the environment
that torchrun sets).
Importing this module does not import torch; names are imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kshot.runs.calls import evaluate, resume, train, train_seeds, train_splits
    from kshot.runs.comparison import Comparison, compare
    from kshot.runs.cross_validation import CrossValidation
    from kshot.runs.learners import TrainedLearner, load_learner
    from kshot.runs.predictions import Prediction
    from kshot.runs.run import Run
    from kshot.runs.trained import Threshold, Trained

_MODULE_OF = {
    "Comparison": "comparison",
    "CrossValidation": "cross_validation",
    "Prediction": "predictions",
    "Run": "run",
    "Threshold": "trained",
    "Trained": "trained",
    "TrainedLearner": "learners",
    "compare": "comparison",
    "evaluate": "calls",
    "load_learner": "learners",
    "resume": "calls",
    "train": "calls",
    "train_seeds": "calls",
    "train_splits": "calls",
}

__all__ = [
    "Comparison",
    "CrossValidation",
    "Prediction",
    "Run",
    "Threshold",
    "Trained",
    "TrainedLearner",
    "compare",
    "evaluate",
    "load_learner",
    "resume",
    "train",
    "train_seeds",
    "train_splits",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'kshot.runs' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"kshot.runs.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
