"""Sample tasks in another process: ``python -m kshot.testing.other_process REQUEST ANSWER``."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from kshot.errors import DataError
from kshot.testing.compare import Facts, facts
from kshot.testing.source import Source

LIMIT = 300
"""How many seconds the other process may take to load the tasks' data and to sample a few episodes."""


def importable(source: Source) -> str | None:
    """Return the reason why another process can't build these tasks, or None if it can."""
    if source.is_built:
        return "these tasks were given built; give their name or factory, so that another process can build them too"
    if isinstance(source.given, str):
        return None
    name = getattr(source.given, "__qualname__", "<none>")
    if "<" in name or not hasattr(source.given, "__module__"):
        return f"another process can't import {name}; give a factory on the top level of a module"
    try:
        inspect.getfile(source.given)
        pickle.dumps(source.options)
    except (TypeError, OSError, AttributeError, pickle.PicklingError) as why:
        return f"another process can't build {name} with these options: {why}"
    return None


def sample_elsewhere(source: Source, split: str, indices: list[int]) -> Facts:
    """Sample the episodes ``indices`` of ``split``, one by one, in a process with another hash seed.

    Raises:
        DataError: the other process failed; the message has the end of its error output.
    """
    request: dict[str, Any] = {"options": source.options, "split": split, "indices": indices}
    if isinstance(source.given, str):
        request["name"] = source.given
    else:
        given = source.given
        request["factory"] = (given.__module__, inspect.getfile(given), given.__qualname__)
    with tempfile.TemporaryDirectory() as folder:
        asked, answer = Path(folder, "request"), Path(folder, "answer")
        asked.write_bytes(pickle.dumps(request))
        path = os.pathsep.join(p for p in sys.path if p)
        seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path}
        command = [sys.executable, "-m", "kshot.testing.other_process", str(asked), str(answer)]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False)
        if ended.returncode or not answer.exists():
            raise DataError(
                f"sample: got exit code {ended.returncode} from another process, expected 0; "
                f"sampling these tasks must work in any process. Its error output:\n{ended.stderr.strip()[-3000:]}"
            )
        observations: Facts = torch.load(answer, weights_only=True)
    return observations


def _import(module: str, file: str, qualname: str) -> Callable[..., Any]:
    """Import the factory by the name of its module, or by its file if it is in a test module or a script."""
    try:
        value: Any = importlib.import_module(module) if module != "__main__" else None
    except ImportError:
        value = None
    if value is None:
        name = f"_kshot_elsewhere_{Path(file).stem}"
        spec = importlib.util.spec_from_file_location(name, file)
        if spec is None or spec.loader is None:
            raise ImportError(f"got the file {file}, expected a Python module")
        value = importlib.util.module_from_spec(spec)
        sys.modules[name] = value
        spec.loader.exec_module(value)
    for part in qualname.split("."):
        value = getattr(value, part)
    factory: Callable[..., Any] = value
    return factory


def main(asked: str, answer: str) -> None:
    """Read a request, build the tasks, sample their episodes, and write everything that can be observed of them."""
    request = pickle.loads(Path(asked).read_bytes())
    given = request["name"] if "name" in request else _import(*request["factory"])
    tasks = Source("tasks", given, request["options"]).build()
    observations = {
        f"{i}.{name}": t
        for i in request["indices"]
        for name, t in facts(tasks.sample(request["split"], [i]), tasks.spec.target_shape).items()
    }
    torch.save(observations, answer)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
