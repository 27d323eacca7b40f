"""``kshot.inner.graphs``: a trace on a GPU is captured; a fake recorder stands in for that of CUDA."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from kshot.inner import Lift, State, descend, graphs
from kshot.inner.graphs import captured, record_cuda


class Recorder:
    """Record a run as CUDA does: a replay repeats it on the fixed tensors, and writes to the same outputs."""

    def __init__(self) -> None:
        self.recorded = self.replays = 0

    def __call__(self, run: graphs.Flat, fixed: Sequence[Tensor]) -> tuple[Callable[[], None], Sequence[Tensor]]:
        outputs = run(*fixed)
        self.recorded += 1

        def replay() -> None:
            self.replays += 1
            for old, new in zip(outputs, run(*fixed), strict=True):
                old.copy_(new)

        return replay, outputs


def silent(message: str) -> None:
    raise AssertionError(message)


def both(a: Tensor, b: Tensor) -> list[Tensor]:
    return [a + b, (a * b).sum()]


def test_a_captured_run_computes_with_the_inputs_of_each_call() -> None:
    """Inputs are copied to fixed memory; outputs stay as they were when the next call is replayed."""
    recorder = Recorder()
    run = captured(both, [torch.ones(3), torch.ones(3)], silent, device="cpu", record=recorder)
    one = run(torch.tensor([1.0, 2.0, 3.0]), torch.ones(3).requires_grad_())
    two = run(torch.zeros(3), torch.tensor([4.0, 5.0, 6.0]))
    assert [t.tolist() for t in one] == [[2.0, 3.0, 4.0], 6.0]
    assert [t.tolist() for t in two] == [[4.0, 5.0, 6.0], 0.0]
    assert (recorder.recorded, recorder.replays) == (1, 2)


def test_the_first_inputs_are_not_written_to() -> None:
    """The fixed memory is a copy: the parameters that were given at first keep their numbers."""
    first = [torch.ones(3), torch.ones(3)]
    run = captured(both, first, silent, device="cpu", record=Recorder())
    run(torch.zeros(3), torch.zeros(3))
    assert torch.equal(first[0], torch.ones(3))


def test_what_launches_do_not_bound_is_not_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large operations take longer than a launch; tensors on another device have no CUDA graph."""
    recorder, tensors = Recorder(), [torch.ones(3), torch.ones(3)]
    assert captured(both, tensors, silent, record=recorder) is both
    assert captured(both, [], silent, device="cpu", record=recorder) is both
    monkeypatch.setattr(graphs, "LAUNCHES_BELOW", 4)
    assert captured(both, tensors, silent, device="cpu", record=recorder) is both
    assert recorder.recorded == 0


def test_a_run_that_draws_is_not_captured_and_draws_the_same_afterwards() -> None:
    """The random state is as before."""
    recorder = Recorder()

    def noisy(a: Tensor) -> list[Tensor]:
        return [a + torch.rand_like(a)]

    torch.manual_seed(3)
    expected = noisy(torch.zeros(2))[0]
    torch.manual_seed(3)
    run = captured(noisy, [torch.zeros(2)], silent, device="cpu", record=recorder)
    assert run is noisy
    assert recorder.recorded == 0
    assert torch.equal(run(torch.zeros(2))[0], expected)


def test_an_expanded_input_is_not_captured() -> None:
    """Its copy would have other strides."""
    assert captured(both, [torch.ones(1).expand(3), torch.ones(3)], silent, device="cpu", record=Recorder()) is both


def test_what_cannot_be_recorded_runs_as_before_and_is_told() -> None:
    """The warning has the first line of the reason."""

    def fails(run: graphs.Flat, fixed: Sequence[Tensor]) -> tuple[Callable[[], None], Sequence[Tensor]]:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    told: list[str] = []
    assert captured(both, [torch.ones(3)] * 2, told.append, device="cpu", record=fails) is both
    assert told == [
        "Lift: a trace can't be captured as a CUDA graph (operation not permitted when stream is capturing); its "
        "operations are launched one by one"
    ]


def goal(state: State, x: Tensor) -> tuple[dict[str, Tensor], State]:
    """Take one inner step towards x, and return the loss after it."""
    adapted, _ = descend(lambda s, x: (s.parameters["a"] - x).square().sum(), state, x, lr=0.1, steps=1)
    return {"loss": (adapted.parameters["a"] - 1).square().sum()}, adapted


def test_a_traced_meta_step_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """``Lift`` gives its traces to ``captured``, and replays what it returns: the gradients of a loop."""
    recorder = Recorder()

    def on_cpu(run: graphs.Flat, tensors: Sequence[Tensor], warn: Callable[[str], None]) -> graphs.Flat:
        return captured(run, tensors, warn, device="cpu", record=recorder)

    monkeypatch.setattr(graphs, "captured", on_cpu)
    found = {}
    for strategy in ("traced", "loop"):
        a = torch.nn.Parameter(torch.zeros(2))
        lift = Lift(strategy)  # type: ignore[arg-type]
        for i in range(4):
            lift.mean_gradient(goal, State({"a": a}, {}), torch.full((3, 2), float(i)))
            with torch.no_grad():
                a -= 0.1
        found[strategy] = a.grad
    assert recorder.recorded == 1
    assert recorder.replays >= 3
    assert torch.allclose(found["traced"], found["loop"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
def test_on_a_gpu_a_graph_computes_the_numbers_of_its_run() -> None:
    """The same bits, for other inputs than those of the recording."""
    a, b = torch.randn(50, device="cuda"), torch.randn(50, device="cuda")
    run = captured(both, [torch.ones_like(a), torch.ones_like(b)], silent, record=record_cuda)
    assert run is not both
    assert all(torch.equal(x, y) for x, y in zip(run(a, b), both(a, b), strict=True))
