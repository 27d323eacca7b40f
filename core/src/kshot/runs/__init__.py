"""What a run is, for Python and the command line alike: ``kshot.runs.train`` is what ``kshot train`` does.

    run = kshot.runs.train("protonet", "omniglot", iterations=1000, seed=1)
    print(run)                                # the test's accuracy, with its 95 % interval
    run = kshot.runs.resume("runs/protonet-omniglot-1")
    print(kshot.runs.compare("runs/protonet-omniglot-1", "runs/maml-omniglot-1"))

Reading order: ``recipe`` (what a user asks for), ``plan`` (what a run is built from), ``runner`` (from a plan to a
run), ``calls`` (the functions above), ``run`` (what they return), ``comparison`` (runs side by side), ``trained`` (a
run in use), ``launch`` (what torchrun says).
Importing this imports no torch; names are fetched on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kshot.runs.calls import evaluate, resume, train, train_seeds
    from kshot.runs.comparison import Comparison, compare
    from kshot.runs.run import Run
    from kshot.runs.trained import Prediction, Threshold, Trained

_MODULE_OF = {
    "Comparison": "comparison",
    "Prediction": "trained",
    "Run": "run",
    "Threshold": "trained",
    "Trained": "trained",
    "compare": "comparison",
    "evaluate": "calls",
    "resume": "calls",
    "train": "calls",
    "train_seeds": "calls",
}

__all__ = [
    "Comparison",
    "Prediction",
    "Run",
    "Threshold",
    "Trained",
    "compare",
    "evaluate",
    "resume",
    "train",
    "train_seeds",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'kshot.runs' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"kshot.runs.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
