"""Functions that draw results and traces as a matplotlib ``Figure``; they neither show nor write anything.

A trace is a dict of arrays that a learner with the ability ``Explains`` returns. The names in the trace determine
which pictures can be drawn, whatever the learner is:

- ``inputs``, ``outputs`` [B, k, n, 1], ``targets``, ``support_inputs``, ``support_targets``: a curve fitted in k steps;
- ``read_weights``, ``write_weights`` [B, T, heads, M]: the places where a memory was read and written;
- ``trajectories`` [B, k, E, T, 2], ``goal`` [B, 2]: paths in the plane after 0 to k - 1 updates;
- ``paths`` [B, k, E, T, 2] after 0 to k - 1 inner steps, each in a scene of its own with K ``objects`` [B, k, E, K, 2]
  of some ``hues`` [B, k, E, K], of which ``targets`` [B, k, E] are to be reached; and the same names with ``shown_``
  for the demonstrations [B, D, ...].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from kshot import Result

Array = NDArray[np.float64]
Trace = Mapping[str, Array]


def curves(results: Mapping[str, Result], score: str) -> Figure:
    """Draw a score that is a curve [episodes, T]: its mean and 95 % interval over episodes, for one or more results.

    Losses of optimizers get a logarithmic axis, because they span decades; fractions get an axis from 0 to 1.

    Args:
        results: the results, by the name to show for each.
        score: the name of the score, e.g. ``curve``, ``error_by_step`` or ``accuracy_by_instance``.

    Example:
        >>> import numpy as np
        >>> from kshot import Result
        >>> from kshot_plots import curves
        >>> scores = {"error": np.array([0.5, 0.4]), "error_by_step": np.array([[0.6, 0.4], [0.5, 0.3]])}
        >>> len(curves({"mann": Result(scores=scores, kind="sequence", split="test")}, "error_by_step").axes)
        1
    """
    figure, axes = _one()
    for name, result in results.items():
        mean, half = result.means(score), result.intervals(score)
        at = np.arange(1, len(mean) + 1)
        axes.plot(at, mean, label=name, marker="o" if len(mean) <= 20 else None, markersize=4)
        axes.fill_between(at, mean - half, mean + half, alpha=0.2, linewidth=0)
    first = next(iter(results.values()))
    if first.kind == "objective":
        axes.set_yscale("log")
    elif first.kind == "sequence":
        axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel({"accuracy_by_instance": "instance of a class"}.get(score, "step"))
    axes.set_ylabel({"curve": first.headline}.get(score, score.replace("_", " ")))
    axes.set_title(f"{first.episodes} episodes, {first.split}", fontsize="medium")
    if len(results) > 1:
        axes.legend(frameon=False)
    return figure


def fit(trace: Trace, task: int = 0, steps: Sequence[int] = (0, 1, 5, 10)) -> Figure:
    """Draw the predictions of a regression with one input after some inner steps, the support and the truth.

    Args:
        trace: the arrays of the trace.
        task: the number of the task in the meta-batch.
        steps: the inner steps after which to draw the predictions; those that were not made are left out.
    """
    figure, axes = _one()
    x = trace["inputs"][task, :, 0]
    order = np.argsort(x)  # the queries are in any order, and a line must not go back
    axes.plot(x[order], trace["targets"][task, order, 0], color="black", label="truth")
    outputs = trace["outputs"][task]
    shown = [k for k in steps if k < len(outputs)]
    for i, k in enumerate(shown):
        shade = 0.25 + 0.75 * i / max(1, len(shown) - 1)
        style = "--" if k == 0 else "-"
        label = "before" if k == 0 else f"{k} step{'s' if k > 1 else ''}"
        axes.plot(x[order], outputs[k, order, 0], style, color="tab:blue", alpha=shade, label=label)
    points = trace["support_inputs"][task, :, 0], trace["support_targets"][task, :, 0]
    axes.plot(*points, "o", color="tab:red", label="support")
    axes.set_xlabel("x")
    axes.set_ylabel("y")
    axes.legend(frameon=False)
    return figure


def weights(trace: Trace, task: int = 0) -> Figure:
    """Draw write and read weights over time in one panel per head: time to the right, slots downwards."""
    panels = [
        (f"{verb} head {h + 1}" if trace[name].shape[2] > 1 else verb, trace[name][task, :, h].T)
        for verb, name in (("write", "write_weights"), ("read", "read_weights"))
        if name in trace
        for h in range(trace[name].shape[2])
    ]
    figure = Figure(figsize=(7, 0.6 + 1.9 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    slots = slots_in_use(np.max([w.max(1) for _, w in panels], axis=0))
    for ax, (title, w) in zip(axes, panels, strict=True):
        image = ax.imshow(w[slots], aspect="auto", cmap="magma", vmin=0, vmax=1, interpolation="nearest")
        ticks = np.unique(np.linspace(0, len(slots) - 1, min(6, len(slots))).round().astype(int))
        ax.set_yticks(ticks, [str(slots[t]) for t in ticks])
        ax.set_title(title, fontsize="medium")
        ax.set_ylabel("slot")
    axes[-1].set_xlabel("time")
    figure.colorbar(image, ax=list(axes), label="weight")
    return figure


def slots_in_use(greatest: Array, least: float = 0.1) -> NDArray[np.int64]:
    """Return the numbers of the slots to draw, given the ``greatest`` weight that each slot ever had [M].

    Most slots of a large memory are never used. Addressing can wrap around from the last slot to the first, so the
    memory is treated as a circle, and the longest stretch of unused slots is left out.

    Args:
        greatest: the greatest weight of each slot [M].
        least: the weight from which on a slot counts as used.
    """
    M, used = len(greatest), np.flatnonzero(greatest > least)
    if not len(used):
        return np.arange(M)
    # Distances between used slots around the circle; of equally wide gaps the last one is left out.
    gaps = np.diff(np.append(used, used[0] + M))
    widest = len(gaps) - 1 - int(gaps[::-1].argmax())
    first = used[(widest + 1) % len(used)]
    return np.asarray(first + np.arange(M - gaps[widest] + 1)) % M


def trajectories(trace: Trace, task: int = 0) -> Figure:
    """Draw paths in the plane before adaptation and after each update, with the goal, which the policy cannot see."""
    paths = trace["trajectories"][task]
    figure = Figure(figsize=(2.6 * len(paths), 2.9), layout="constrained")
    axes = figure.subplots(1, len(paths), sharex=True, sharey=True, squeeze=False)[0]
    for k, (ax, group) in enumerate(zip(axes, paths, strict=True)):
        for path in group:
            ax.plot(path[:, 0], path[:, 1], color="tab:blue", alpha=0.4, linewidth=0.8)
        ax.plot(*paths[0, 0, 0], "s", color="black", markersize=4, label="start")
        if "goal" in trace:
            ax.plot(*trace["goal"][task], "*", color="tab:red", markersize=11, label="goal")
        ax.set_title("before" if k == 0 else f"after {k} update{'s' if k > 1 else ''}", fontsize="medium")
        ax.set_aspect("equal")
    axes[0].legend(frameon=False, fontsize="small")
    return figure


def scenes(trace: Trace, task: int = 0, rows: int = 3) -> Figure:
    """Draw a path to one of several objects before adaptation and after all inner steps, in a row for each trajectory.

    The first column has the demonstrations. Objects have their hues as colours, and a ring is around the target.

    Args:
        trace: the arrays of the trace.
        task: the number of the task in the meta-batch.
        rows: the greatest number of trajectories that are drawn.
    """
    names = ("paths", "objects", "hues", "targets")
    played = [trace[name][task] for name in names]
    shown = [trace[f"shown_{name}"][task] for name in names] if "shown_paths" in trace else None
    last = len(played[0]) - 1
    columns: list[tuple[str, list[Array]]] = [("demonstration", shown)] if shown is not None else []
    columns.append(("before", [values[0] for values in played]))
    if last:
        columns.append((f"after {last} step{'s' if last > 1 else ''}", [values[last] for values in played]))
    rows = min(rows, played[0].shape[1])
    figure = Figure(figsize=(2.4 * len(columns), 2.3 * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, len(columns), sharex=True, sharey=True, squeeze=False)
    for c, (title, values) in enumerate(columns):
        grid[0, c].set_title(title, fontsize="medium")
        for r, ax in enumerate(grid[:, c]):
            if r >= len(values[0]):  # fewer demonstrations than trajectories
                ax.set_axis_off()
                continue
            path, objects, hues, target = (array[r] for array in values)
            ax.scatter(*objects.T, c=hues % (2 * np.pi), cmap="hsv", vmin=0, vmax=2 * np.pi, s=60)
            ax.plot(*objects[int(target)], "o", color="black", fillstyle="none", markersize=13, label="target")
            ax.plot(path[:, 0], path[:, 1], ".-", color="tab:blue", linewidth=0.8, markersize=3)
            ax.plot(*path[0], "s", color="black", markersize=4, label="start")
            ax.set_aspect("equal")
    grid[0, 0].legend(frameon=False, fontsize="small")
    return figure


DRAWINGS: Mapping[str, tuple[tuple[str, ...], Callable[[Trace], Figure]]] = {
    "fit": (("inputs", "outputs", "targets", "support_inputs", "support_targets"), fit),
    "weights": (("read_weights",), weights),
    "trajectories": (("trajectories",), trajectories),
    "scenes": (("paths", "objects", "hues", "targets"), scenes),
}
"""For each picture the names that it needs in a trace, and the function that draws it."""


def of_trace(trace: Mapping[str, Any]) -> dict[str, Figure]:
    """Draw every picture whose names are in the trace; ``fit`` only if inputs and targets are single numbers."""
    arrays: dict[str, Array] = {
        n: np.asarray(getattr(t, "detach", lambda t=t: t)(), np.float64) for n, t in trace.items()
    }
    figures = {}
    for name, (needed, draw) in DRAWINGS.items():
        if all(n in arrays for n in needed):
            if name == "fit" and (arrays["inputs"].shape[2:] != (1,) or arrays["outputs"].shape[3:] != (1,)):
                continue
            figures[name] = draw(arrays)
    return figures


def of_result(result: Result) -> dict[str, Figure]:
    """Draw every score of a result that is a curve, by the name of the score."""
    return {name: curves({name: result}, name) for name, v in result.scores.items() if np.ndim(v) == 2}


def _one() -> tuple[Figure, Any]:
    """Make a figure with one pair of axes."""
    figure = Figure(figsize=(5.5, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
