"""``kshot_ntm.ntm``: the wiring of the paper, any memory, any length, and that the machine learns."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import kshot
from kshot import Engine, Episode, Examples, Support, TaskSpec
from kshot.errors import DataError, MisfitError, OptionError
from kshot.functional import sequence_loss
from kshot.testing import sample_tasks
from kshot_ntm import NTM
from kshot_ntm_memory import NTMMemory


def small(slots: int = 8, width: int = 4, reads: int = 1) -> NTMMemory:
    """Return a memory that keeps tests quick, whatever sizes the learner requests."""
    return NTMMemory(8, 4, 2)


def bits(*target: int) -> TaskSpec:
    """Return the specification of tasks with targets of bits."""
    return TaskSpec(kind="sequence", input_shape=(3,), target_shape=target, query=2, split_by="index")


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    """Return reproducible standard normal numbers in float64."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Copies:
    """Provide bits to copy, in sequences of one length per block of 16 episodes.

    Args:
        least, most: the smallest and the greatest number of vectors.
        width: bits of one vector.
    """

    def __init__(self, least: int, most: int, width: int) -> None:
        self.parts = [sample_tasks.Copying(length=n, bits=width) for n in range(least, most + 1)]
        spec = self.parts[0].spec.to_dict()
        self.spec = TaskSpec.from_dict({**spec, "query": (2 * least + 1, 2 * most + 1), "block": 16})
        self.seed = 0

    def sample(self, split: str, indices: object) -> Episode:
        numbers = list(indices)  # type: ignore[call-overload]
        return self.parts[numbers[0] // 16 % len(self.parts)].sample(split, numbers)


# --- The wiring ------------------------------------------------------------------------------------------------------


def test_a_feed_forward_machine_is_the_papers():
    """The outputs equal h_t = tanh(U x_t + V r_{t-1}), the memory's step and o_t = O [h_t, r_t], in float64."""
    learner = NTM(bits(2), memory=small, hidden=5).double()
    x = numbers(2, 4, 3)
    c, read, state = learner.controller, torch.zeros(2, 8, dtype=torch.float64), learner.memory.initial_state(2)
    for t in range(4):
        h = torch.tanh(x[:, t] @ c.see.weight.T + c.see.bias + read @ c.recall.weight.T)
        read, state = learner.memory.step(h @ learner.emit.weight.T + learner.emit.bias, state)
        output = torch.cat([h, read], 1) @ learner.say.weight.T + learner.say.bias
        assert torch.allclose(learner.answer(x)[:, t], output, atol=1e-12)


def test_an_lstm_machine_is_torchs_cell_over_inputs_and_reads():
    """The outputs equal those of nn.LSTMCell with the same weights and a forget gate that is biased by 1."""
    learner = NTM(bits(2), memory=small, controller="lstm", hidden=5).double()
    cell = nn.LSTMCell(3 + 8, 5).double()
    see, recall = learner.controller.see, learner.controller.recall
    with torch.no_grad():
        cell.weight_ih.copy_(torch.cat([see.weight, recall.weight[:, :8]], 1))
        cell.weight_hh.copy_(recall.weight[:, 8:])
        cell.bias_ih.copy_(see.bias)
        cell.bias_hh.zero_()
        cell.bias_hh[5:10] = 1
    x = numbers(2, 4, 3)
    read, state, carry = torch.zeros(2, 8, dtype=torch.float64), learner.memory.initial_state(2), None
    for t in range(4):
        carry = cell(torch.cat([x[:, t], read], 1), carry)
        read, state = learner.memory.step(learner.emit(carry[0]), state)
        output = learner.say(torch.cat([carry[0], read], 1))
        assert torch.allclose(learner.answer(x)[:, t], output, atol=1e-12)


def test_a_gru_machine_is_torchs_cell_over_inputs_and_reads():
    """The outputs equal those of nn.GRUCell with the same weights."""
    learner = NTM(bits(2), memory=small, controller="gru", hidden=5).double()
    cell = nn.GRUCell(3 + 8, 5).double()
    controller = learner.controller
    with torch.no_grad():
        cell.weight_ih.copy_(torch.cat([controller.see.weight, controller.recall.weight], 1))
        cell.weight_hh.copy_(controller.last.weight)
        cell.bias_ih.copy_(controller.see.bias)
        cell.bias_hh.copy_(controller.last.bias)
    x, h = numbers(2, 4, 3), torch.zeros(2, 5, dtype=torch.float64)
    read, state = torch.zeros(2, 8, dtype=torch.float64), learner.memory.initial_state(2)
    for t in range(4):
        h = cell(torch.cat([x[:, t], read], 1), h)
        read, state = learner.memory.step(learner.emit(h), state)
        output = learner.say(torch.cat([h, read], 1))
        assert torch.allclose(learner.answer(x)[:, t], output, atol=1e-12)


@pytest.mark.parametrize("controller", ["feedforward", "lstm", "gru"])
@pytest.mark.parametrize("segment", [1, 3, 9])
def test_steps_that_are_computed_again_give_the_same_gradient(controller, segment):
    """What is kept for the backward pass changes memory and time only; in float64."""
    tasks = sample_tasks.Copying(length=3, bits=2)
    episode = kshot.episode.map_tensors(
        lambda t: t.double() if t.is_floating_point() else t, tasks.sample("train", range(2))
    )
    gradients = []
    for steps in (0, segment):
        torch.manual_seed(0)
        learner = NTM(tasks.spec, memory=small, controller=controller, hidden=5, segment=steps).double()
        learner.meta_gradient(episode)
        gradients.append([p.grad for p in learner.parameters()])
    assert all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(*gradients, strict=True))


class Latest(nn.Module):
    """A memory with a buffer and a parameter, of which every number that is written fades."""

    def __init__(self, slots, width, reads):
        super().__init__()
        self.interface_size = self.read_size = width
        self.register_buffer("fading", torch.tensor(0.5))
        self.first = nn.Parameter(torch.ones(width))

    def initial_state(self, batch_size):
        return self.first.expand(batch_size, -1)

    def step(self, interface, state):
        state = self.fading * state + interface
        return state, state


@pytest.mark.parametrize("memory", [small, Latest])
def test_a_trace_computes_the_gradient_of_the_loop(memory):
    """For each of two lengths, again and again, also after the parameters have changed; in float64."""
    spec = sample_tasks.Copying(length=2, bits=2).spec
    learners = []
    for strategy in ("loop", "traced"):
        torch.manual_seed(0)
        learners.append(NTM(spec, memory=memory, hidden=5, strategy=strategy).double())
    for i in range(8):
        episode = kshot.episode.map_tensors(
            lambda t: t.double() if t.is_floating_point() else t,
            sample_tasks.Copying(length=2 + i % 2, bits=2).sample("train", range(4 * i, 4 * i + 4)),
        )
        metrics = []
        for learner in learners:
            learner.zero_grad()
            direct = sequence_loss(learner.answer(episode.query.x), episode.query.y)
            gradients = torch.autograd.grad(direct, list(learner.parameters()))
            metrics.append(learner.meta_gradient(episode))
            assert float(metrics[-1]["loss"]) == pytest.approx(float(direct.detach()), abs=1e-12)
            pairs = zip(learner.parameters(), gradients, strict=True)
            assert all(torch.allclose(p.grad, gradient, rtol=0, atol=1e-12) for p, gradient in pairs)
            with torch.no_grad():
                for p in learner.parameters():
                    p -= 0.1 * p.grad
        assert all(torch.allclose(metrics[0][name], metrics[1][name], rtol=0, atol=1e-12) for name in metrics[0])
        pairs = zip(*(learner.parameters() for learner in learners), strict=True)
        assert all(torch.allclose(a.grad, b.grad, rtol=0, atol=1e-12) for a, b in pairs)
    works = [work for lift in learners[1].lifts.values() for work in lift._replays._works.values()]
    assert [bool(work.traces) for work in works] == [True, True]


def test_steps_that_are_computed_again_keep_less():
    """Of 41 steps in segments of 6, autograd keeps less than half of the bytes."""
    kept = []
    for segment in (0, 6):
        total = 0

        def count(t):
            nonlocal total
            total += t.numel() * t.element_size()
            return t

        learner = NTM(bits(2), memory=small, hidden=5, segment=segment)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            learner.answer(torch.ones(1, 41, 3)).sum()
        kept.append(total)
    assert kept[1] < kept[0] / 2


@pytest.mark.parametrize(
    ("controller", "expected"),
    [
        ("lstm", [[0.2113560438156128, -0.2231055200099945], [0.13235192000865936, -0.31132176518440247]]),
        ("feedforward", [[-0.39294373989105225, 0.0773201733827591], [-0.12987631559371948, -0.0019247420132160187]]),
    ],
)
def test_a_fixed_seed_gives_the_recorded_answers(controller, expected):
    """Initialisation order and arithmetic are part of what a stored checkpoint and a seed mean."""
    tasks = sample_tasks.Copying(length=3, bits=2)
    memory = {"name": "ntm-memory", "slots": 8, "width": 4, "reads": 2}
    learner = kshot.learner("ntm", tasks.spec, seed=3, controller=controller, hidden=5, memory=memory)
    episode = tasks.sample("test", [0])
    answers = learner.adapt(episode.support)(episode.query.x)
    assert torch.allclose(answers[0, [0, -1]], torch.tensor(expected), atol=1e-6)


@pytest.mark.parametrize("controller", ["feedforward", "lstm"])
def test_the_output_sees_what_is_read_at_the_same_step(controller):
    """In a sequence of one step the memory can only matter through the output, so its interface must get a gradient."""
    learner = NTM(bits(2), memory=small, controller=controller, hidden=5)
    learner.answer(torch.ones(1, 1, 3)).sum().backward()
    assert learner.emit.weight.grad.abs().sum() > 0


def test_the_metrics_are_loss_and_share_of_wrong_bits():
    """The gradient is that of the mean cross-entropy over the scored bits, computed by hand."""
    learner = NTM(bits(2), memory=small, hidden=5)
    x, y = torch.ones(1, 3, 3), torch.tensor([[[math.nan, math.nan], [1.0, 0.0], [1.0, 1.0]]])
    episode = Episode(Support(x[:, :0], y[:, :0]), Examples(x, y))
    metrics = learner.meta_gradient(episode)
    logits = learner.answer(x)[0, 1:]
    expected = -torch.where(y[0, 1:] == 1, logits.sigmoid().log(), (1 - logits.sigmoid()).log()).mean()
    assert float(metrics["error"]) == pytest.approx(float(((logits > 0) != (y[0, 1:] == 1)).float().mean()))
    (grad,) = torch.autograd.grad(expected, learner.say.weight)
    assert torch.allclose(learner.say.weight.grad, grad, atol=1e-6)
    assert float(metrics["loss"]) == pytest.approx(float(expected.detach()), rel=1e-5)


@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        (bits(2), (2,)),
        (bits(2, 3), (2, 3)),
        (bits(), ()),
        (TaskSpec(kind="sequence", input_shape=(3,), way=5, query=4, split_by="index"), (5,)),
        (TaskSpec(kind="sequence", input_shape=(3,), target_shape=(4,), way=5, query=4, split_by="index"), (4, 5)),
    ],
)
def test_outputs_have_the_shape_of_the_targets(spec, shape):
    """Bits may have any shape; labels have one logit per class, and strings of labels as many for each character."""
    assert NTM(spec, memory=small).answer(torch.zeros(2, 4, 3)).shape == (2, 4, *shape)


# --- Any memory ------------------------------------------------------------------------------------------------------


class Latch(nn.Module):
    """A memory of one row, moved towards the interface by a gate; its state is one bare tensor."""

    def __init__(self, slots: int, width: int, reads: int) -> None:
        super().__init__()
        self.interface_size, self.read_size = width + 1, width

    def initial_state(self, batch_size: int) -> torch.Tensor:
        return torch.zeros(batch_size, self.read_size)

    def step(self, interface: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        new = torch.lerp(state, interface[:, 1:], interface[:, :1].sigmoid())
        return new, new


class Watched(Latch):
    """A latch whose state is a dict that names its read weights."""

    def initial_state(self, batch_size: int) -> dict:
        return {"row": super().initial_state(batch_size), "read_weights": torch.zeros(batch_size, 1, 1)}

    def step(self, interface: torch.Tensor, state: dict) -> tuple[torch.Tensor, dict]:
        read, row = super().step(interface, state["row"])
        return read, {"row": row, "read_weights": state["read_weights"] + 1}


def test_a_trace_has_the_outputs_and_the_places_of_the_heads():
    """A trace is of numpy arrays [B, T, ...]; its outputs are the predictions, its weights those of the states."""
    tasks = sample_tasks.Copying(length=3, bits=2)
    learner = kshot.learner("ntm", tasks.spec, memory=small, hidden=5)
    episode = tasks.sample("test", [0, 1])
    traced = learner.trace(episode)
    shapes = {name: array.shape for name, array in traced.items()}
    assert shapes == {
        "inputs": (2, 7, 3),
        "outputs": (2, 7, 2),
        "targets": (2, 7, 2),
        "read_weights": (2, 7, 2, 8),
        "write_weights": (2, 7, 1, 8),
    }
    assert all(isinstance(array, np.ndarray) for array in traced.values())
    assert np.array_equal(traced["outputs"], learner.adapt(episode.support)(episode.query.x).detach().numpy())
    states = []
    learner.answer(episode.query.x[:, :2], states)
    assert np.allclose(traced["read_weights"][:, 1], states[1].read_weights.detach().numpy(), atol=1e-6)


def test_it_runs_in_bfloat16():
    """The controller is rounded, memory and loss are not, and traces are float32, because numpy has no bfloat16."""
    tasks = sample_tasks.Copying(length=2, bits=2)
    learner = kshot.learner("ntm", tasks.spec, memory=small, hidden=5)
    engine = Engine(learner, tasks, hooks=(), backend=kshot.Cpu(precision="bfloat16"))
    assert math.isfinite(engine.train(2)["loss"])
    episode = tasks.sample("test", [0])
    exact = learner.trace(episode)
    with engine.backend.autocast():
        rounded = learner.trace(episode)
    for name, array in exact.items():
        assert rounded[name].dtype == array.dtype
        assert np.allclose(rounded[name], array, atol=0.02, equal_nan=True)


def test_of_another_memory_a_trace_shows_what_its_state_names():
    """By the Memory protocol these are fields of a named tuple or keys of a dict; otherwise nothing can be drawn."""
    tasks = sample_tasks.Copying()
    episode = tasks.sample("test", [0])
    assert set(NTM(tasks.spec, memory=Latch).trace(episode)) == {"inputs", "outputs", "targets"}
    traced = NTM(tasks.spec, memory=Watched).trace(episode)
    assert traced["read_weights"][0, :, 0, 0].tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert "write_weights" not in traced


@pytest.mark.parametrize("tasks", [sample_tasks.Copying(), sample_tasks.LabelStream()])
def test_any_memory_serves_for_bits_and_labels(tasks):
    """The memory determines the controller's sizes and the tasks its outputs; one meta-batch can be learned."""
    learner = kshot.learner("ntm", tasks.spec, memory=Latch)
    episodes = tasks.sample("train", range(4))
    optimizer = torch.optim.Adam(learner.parameters(), 1e-2)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        losses.append(float(learner.meta_gradient(episodes)["loss"]))
        optimizer.step()
    assert losses[-1] < losses[0] / 2


def test_a_memory_is_chosen_by_name_with_its_options():
    """This is what ``--learner.memory=ntm-memory --learner.memory.slots=16`` does; the user's sizes take precedence."""
    spec = bits(2)
    memory = {"name": "ntm-memory", "slots": 16, "width": 6}
    learner = kshot.learner("ntm", spec, memory=memory, hidden=7)
    assert (learner.memory.slots, learner.memory.width, learner.memory.reads) == (16, 6, 1)
    assert tuple(learner.say.weight.shape) == (2, 7 + 6)
    plain = kshot.learner("ntm", spec).memory
    assert (plain.slots, plain.width, plain.reads) == (128, 20, 1)


# --- Any length ------------------------------------------------------------------------------------------------------


def test_lengths_vary_in_training_and_go_beyond_it_in_testing():
    """Training has meta-batches of 3 to 7 steps, testing has 21 steps."""
    tasks = Copies(1, 3, width=2)
    learner = kshot.learner("ntm", tasks.spec, memory=small, hidden=5)
    engine = Engine(learner, tasks, hooks=())
    engine.train(4)
    assert engine.evaluate(48).scores["error_by_step"].shape == (48, 3)
    longer = engine.evaluate(8, tasks=sample_tasks.Copying(length=10, bits=2))
    assert longer.scores["error_by_step"].shape == (8, 10)
    assert 0 <= longer.mean <= 1


# --- Bad input -------------------------------------------------------------------------------------------------------


def test_a_sequence_of_length_0_is_refused():
    """The message gives the shape of the inputs."""
    with pytest.raises(DataError, match=r"ntm: got sequences of length 0 \(inputs of shape \(2, 0, 3\)\)"):
        NTM(bits(2), memory=small).adapt(Support(torch.zeros(2, 0, 3), torch.zeros(2, 0)))(torch.zeros(2, 0, 3))


def test_inputs_that_are_not_finite_are_refused():
    """One NaN would stay in the memory for the rest of the sequence; the message gives its place."""
    x = torch.zeros(2, 5, 3)
    x[1, 4, 2] = math.nan
    with pytest.raises(DataError, match=r"ntm: inputs: got 1 of 30 values .* first at \(1, 4, 2\)"):
        NTM(bits(2), memory=small).adapt(Support(x[:, :0], x[:, :0, 0]))(x)


def test_a_memory_whose_sizes_disagree_is_refused():
    """The memory is tried when the machine is built, and the message gives the sizes."""

    class Short(Latch):
        def step(self, interface, state):
            return super().step(torch.cat(interface.split([1, 3], -1), -1), state)

    with pytest.raises(MisfitError, match=r"Short says interface_size 21 and read_size 20, but .* \(2, 21\) raised"):
        kshot.learner("ntm", bits(2), memory=Short)


def test_options_that_make_no_machine_are_refused():
    """The memory checks heads and slots, the learner checks the units and the kind of the controller."""
    with pytest.raises(OptionError, match="ntm: got hidden 0, expected at least 1 unit"):
        kshot.learner("ntm", bits(2), hidden=0)
    with pytest.raises(OptionError, match="controller: got 'rnn', expected one of 'feedforward', 'lstm', 'gru'"):
        kshot.learner("ntm", bits(2), controller="rnn")
    with pytest.raises(OptionError, match="segment: got -1"):
        kshot.learner("ntm", bits(2), segment=-1)
    with pytest.raises(OptionError, match="got 9 read and 1 write heads for 4 slots"):
        kshot.learner("ntm", bits(2), memory={"name": "ntm-memory", "slots": 4, "reads": 9})


# --- Learning --------------------------------------------------------------------------------------------------------


def test_it_learns_to_copy():
    """Lists of 1 to 4 vectors of 4 bits; chance is 50 % wrong bits, and 5 seeds had 0.0 to 0.8 %: at most 5 % pass."""
    tasks = Copies(1, 4, width=4)
    learner = kshot.learner("ntm", tasks.spec, seed=0, memory={"name": "ntm-memory", "slots": 16, "width": 12})
    engine = Engine(learner, tasks, optimizer={"lr": 4e-3, "schedule": "linear"}, hooks=())
    engine.train(400)
    assert engine.evaluate(128).mean < 0.05
