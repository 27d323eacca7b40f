"""Pictures of results and traces as functions: values in, a matplotlib ``Figure`` out; nothing is shown or written.

A trace is what a learner with the ability ``Explains`` returns. What can be drawn is told by its names, not by the
learner's:

- ``inputs``, ``outputs`` [B, k, n, 1], ``targets``, ``support_inputs``, ``support_targets``: a curve fitted in k steps;
- ``read_weights``, ``write_weights`` [B, T, heads, M]: where a memory was read and written;
- ``trajectories`` [B, k, E, T, 2], ``goal`` [B, 2]: paths in the plane after 0 to k - 1 updates.
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
    """A score that is a curve [episodes, T], its mean and 95 % interval over episodes, of one or more results.

    Losses of optimizers span decades and get a log axis; fractions go from 0 to 1.

    Args:
        results: by the name to show for each.
        score: e.g. ``curve``, ``error_by_step``, ``accuracy_by_instance``.
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
    """What a regression with one input predicts after some of its inner steps, the support, and the truth."""
    figure, axes = _one()
    x = trace["inputs"][task, :, 0]
    order = np.argsort(x)
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
    """Write and read weights over time, a picture a head: time to the right, slots downwards."""
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
    """The numbers of the slots to draw, by the ``greatest`` weight [M] that each ever had.

    Most of 128 slots stay untouched. A memory may go on from its last slot to its first, so it is cut open where the
    longest stretch of it is untouched.
    """
    M, used = len(greatest), np.flatnonzero(greatest > least)
    if not len(used):
        return np.arange(M)
    gaps = np.diff(np.append(used, used[0] + M))
    widest = len(gaps) - 1 - int(gaps[::-1].argmax())
    first = used[(widest + 1) % len(used)]
    return np.asarray(first + np.arange(M - gaps[widest] + 1)) % M


def trajectories(trace: Trace, task: int = 0) -> Figure:
    """Paths in the plane before adaptation and after each update, with the goal that the policy is not told."""
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


DRAWINGS: Mapping[str, tuple[tuple[str, ...], Callable[[Trace], Figure]]] = {
    "fit": (("inputs", "outputs", "targets", "support_inputs", "support_targets"), fit),
    "weights": (("read_weights",), weights),
    "trajectories": (("trajectories",), trajectories),
}
"""Picture -> (the names it needs of a trace, how it is drawn)."""


def of_trace(trace: Mapping[str, Any]) -> dict[str, Figure]:
    """Every picture whose names are in the trace; regression is drawn only where inputs and targets are numbers."""
    arrays: dict[str, Array] = {
        n: np.asarray(getattr(t, "detach", lambda t=t: t)(), np.float64) for n, t in trace.items()
    }
    found = {}
    for name, (needed, draw) in DRAWINGS.items():
        if all(n in arrays for n in needed):
            if name == "fit" and (arrays["inputs"].shape[2:] != (1,) or arrays["outputs"].shape[3:] != (1,)):
                continue
            found[name] = draw(arrays)
    return found


def of_result(result: Result) -> dict[str, Figure]:
    """A picture of each score that is a curve."""
    return {name: curves({name: result}, name) for name, v in result.scores.items() if np.ndim(v) == 2}


def _one() -> tuple[Figure, Any]:
    figure = Figure(figsize=(5.5, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
