"""``kshot_lrua_memory``: each equation against loops in float64, and the limits in which it is simple."""

import math

import pytest
import torch

from kshot.errors import MisfitError, OptionError
from kshot_lrua_memory import LRUAMemory, LRUAState
from kshot_lrua_memory.access import EPS, access
from kshot_lrua_memory.memory import least_used

F64 = torch.float64


def naive_step(interface, memory, w_r, usage, *, R, W, decay, strength):
    """Compute section 3 of the paper for one episode in plain Python, with lists of numbers and no tensor."""
    M = len(memory)
    keys = [interface[h * W : (h + 1) * W] for h in range(R)]
    gates = [1 / (1 + math.exp(-a)) for a in interface[R * W :]]
    order = sorted(range(M), key=lambda i: (usage[i], i))
    w_lu = [1.0 if i in order[:R] else 0.0 for i in range(M)]  # eq. 6
    w_w = [[gates[h] * w_r[h][i] + (1 - gates[h]) * w_lu[i] for i in range(M)] for h in range(R)]  # eq. 7
    after = [list(row) for row in memory]
    after[order[0]] = [0.0] * W
    for i in range(M):
        for j in range(W):
            after[i][j] += sum(w_w[h][i] * keys[h][j] for h in range(R))  # eq. 8
    reads, found = [], []
    for key in keys:
        scores = []
        for row in after:
            product = sum(a * b for a, b in zip(key, row, strict=True))
            squares = (sum(a * a for a in key) + EPS) * (sum(a * a for a in row) + EPS)
            scores.append(math.exp(strength * product / math.sqrt(squares)))  # eq. 2
        weights = [s / sum(scores) for s in scores]  # eq. 3
        found.append(weights)
        reads += [sum(weights[i] * after[i][j] for i in range(M)) for j in range(W)]  # eq. 4
    used = [decay * usage[i] + sum(f[i] for f in found) + sum(w[i] for w in w_w) for i in range(M)]  # eq. 5
    return reads, after, found, w_w, used


def interfaces(memory: LRUAMemory, steps: int, B: int = 1, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(steps, B, memory.interface_size, generator=generator, dtype=F64)


@pytest.mark.parametrize(("strength", "factor"), [(None, 1.0), (7.5, 7.5)])
def test_every_equation_equals_loops_over_numbers(strength, factor):
    """All values of 12 steps equal the naive ones in float64 to 1e-12, for two independent episodes."""
    R, W, M = 2, 3, 5
    memory = LRUAMemory(M, W, R, decay=0.9, strength=strength).double()
    with torch.no_grad():
        memory.log_strength.fill_(math.log(factor))  # in float64
    shown = interfaces(memory, steps=12, B=2)
    state = memory.initial_state(2)
    slow = [([[0.0] * W] * M, [[0.0] * M] * R, [0.0] * M) for _ in range(2)]
    for interface in shown:
        reads, state = memory.step(interface, state)
        for b in range(2):
            expected, *kept = naive_step(interface[b].tolist(), *slow[b], R=R, W=W, decay=0.9, strength=factor)
            rows, found, written, used = kept
            slow[b] = (rows, found, used)
            for mine, theirs in zip(
                (reads, state.memory, state.read_weights, state.write_weights, state.usage),
                (expected, rows, found, written, used),
                strict=True,
            ):
                assert torch.allclose(mine[b], torch.tensor(theirs, dtype=F64), rtol=0, atol=1e-12)


def test_its_gradient_is_that_of_the_equations():
    """The hand-written backward pass agrees with finite differences, for every input and every output."""
    generator = torch.Generator().manual_seed(1)
    B, M, W, R = 2, 5, 3, 2
    wiped = torch.tensor([1, 4])
    shapes = ((B, M, W), (B, R, M), (B, R, W), ())
    inputs = [torch.randn(s, generator=generator, dtype=F64).requires_grad_() for s in shapes]

    def function(memory, weights, key, strength):
        return access(memory, wiped, weights, key, strength)

    assert torch.autograd.gradcheck(function, inputs, eps=1e-6, atol=1e-7)


def test_its_gradient_through_time_is_that_of_autograd():
    """After ten steps the gradient of the reads by the first interface is autograd's gradient of eq. 2 to 8."""
    R, W, M = 2, 3, 6
    memory = LRUAMemory(M, W, R, strength=4.0).double()
    shown = interfaces(memory, steps=10, B=3)
    found = []
    for by_hand in (True, False):
        interface = shown.clone().requires_grad_()
        state = memory.initial_state(3)
        for t in range(10):
            reads, state = (memory.step if by_hand else lambda i, s: plain_step(memory, i, s))(interface[t], state)
        weights = torch.linspace(-1, 1, reads.numel(), dtype=F64).view_as(reads)
        found.append(torch.autograd.grad((reads * weights).sum(), [interface, memory.log_strength]))
    for mine, theirs in zip(*found, strict=True):
        assert float(theirs.abs().max()) > 1e-4
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-12)


def plain_step(memory, interface, state):
    """Compute the same step in tensor operations that autograd differentiates one by one."""
    R, W = memory.reads, memory.width
    key, gate = interface[:, : R * W].view(-1, R, W), interface[:, R * W :].sigmoid()[..., None]
    order = state.usage.argsort(dim=1, stable=True)
    marks = torch.zeros_like(state.usage).scatter(1, order[:, :R], 1.0)[:, None]
    w_w = gate * state.read_weights + (1 - gate) * marks
    kept = 1 - torch.zeros_like(state.usage).scatter(1, order[:, :1], 1.0)
    rows = state.memory * kept[..., None] + torch.einsum("brm,brw->bmw", w_w, key)
    lengths = ((key**2).sum(-1)[..., None] + EPS) * ((rows**2).sum(-1)[:, None] + EPS)
    w_r = (memory.log_strength.exp() * torch.einsum("brw,bmw->brm", key, rows) / lengths.sqrt()).softmax(-1)
    used = memory.decay * state.usage + (w_r + w_w).detach().sum(1)
    return torch.einsum("brm,bmw->brw", w_r, rows).flatten(1), LRUAState(rows, w_r, w_w, used)


def closed(memory: LRUAMemory, key: torch.Tensor) -> torch.Tensor:
    """Return an interface with this key for every head and alpha -> -inf: it writes to the least used slot only."""
    keys = key.repeat(1, memory.reads)
    return torch.cat([keys, torch.full((len(key), memory.reads), -1e4, dtype=key.dtype)], 1)


@pytest.mark.parametrize("reads", [1, 2])
def test_with_the_gate_shut_writes_cycle_through_the_slots(reads):
    """With alpha -> -inf one head writes to slots 0, 1, .., M - 1, 0, ..., and two heads to (0, 1), (2, 3), .."""
    memory = LRUAMemory(6, 4, reads, strength=1e-3).double()  # so weak a key reads all slots alike
    state = memory.initial_state(1)
    generator = torch.Generator().manual_seed(2)
    for t in range(15):
        _, state = memory.step(closed(memory, torch.randn(1, 4, generator=generator, dtype=F64)), state)
        written = state.write_weights[0, 0].nonzero().flatten().tolist()
        assert written == [(t * reads + j) % 6 for j in range(reads)]


def test_with_the_gate_open_writes_go_where_was_read():
    """With alpha -> inf, w^w_t is w^r_{t-1} (eq. 7)."""
    memory = LRUAMemory(6, 4, 2).double()
    _, state = memory.step(interfaces(memory, 1)[0], memory.initial_state(1))
    open_ = torch.cat([torch.randn(1, 8, dtype=F64), torch.full((1, 2), 1e4, dtype=F64)], 1)
    _, after = memory.step(open_, state)
    assert torch.equal(after.write_weights, state.read_weights)


def test_the_least_used_slot_is_wiped_before_it_is_written():
    """With the gate shut and one head, the written slot contains only the new key, whatever it contained before."""
    memory = LRUAMemory(2, 3, 1, strength=1e-3).double()
    state = memory.initial_state(1)
    for t in range(5):
        key = torch.tensor([[t + 1.0, 0.0, -1.0]], dtype=F64)
        _, state = memory.step(closed(memory, key), state)
        assert torch.equal(state.memory[0, t % 2], key[0])


def test_what_was_written_is_read_at_once():
    """Reading uses the new memory: a key with great strength finds itself where it was just written."""
    memory = LRUAMemory(5, 3, 1, strength=1e3).double()
    key = torch.tensor([[0.3, -2.0, 1.0]], dtype=F64)
    reads, state = memory.step(closed(memory, key), memory.initial_state(1))
    assert torch.allclose(reads, key, atol=1e-6)
    assert int(state.read_weights.argmax()) == 0


def test_slots_used_alike_come_in_their_order():
    """Equally used slots are ordered by number, so that an untouched memory is filled from the front."""
    usage = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.5, 0.1, 0.5, 0.0]])
    assert least_used(usage, 3).tolist() == [[0, 1, 2], [3, 1, 0]]


def test_without_a_strength_the_softmax_is_nearly_flat():
    """By the paper's eq. 3 a perfect match among 127 empty slots is read with a weight of e / (e + 127) = 2.1 %."""
    memory = LRUAMemory(128, 4, 1).double()
    assert not list(memory.parameters())
    _, state = memory.step(closed(memory, torch.ones(1, 4, dtype=F64)), memory.initial_state(1))
    assert float(state.read_weights.max()) == pytest.approx(math.e / (math.e + 127), rel=1e-5)


def test_the_strength_is_learned_from_where_it_begins():
    """The strength is one positive number, stored as its logarithm."""
    memory = LRUAMemory(4, 3, 1, strength=10.0)
    (log_strength,) = memory.parameters()
    assert float(log_strength.detach().exp()) == pytest.approx(10.0)


def test_autocast_leaves_the_memory_its_digits():
    """Under bfloat16 autocast the forward and backward passes are in float32, because addressing needs the digits."""
    memory = LRUAMemory(6, 4, 2, strength=5.0)
    shown = interfaces(memory, 3).float()
    found = []
    for enabled in (False, True):
        interface = shown.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            state = memory.initial_state(1)
            for t in range(3):
                reads, state = memory.step(interface[t], state)
            reads.sum().backward()
        assert reads.dtype == torch.float32
        found.append((reads.detach(), interface.grad))
    for plain, cast in zip(*found, strict=True):
        assert torch.equal(plain, cast)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slots": 3, "reads": 4}, "got reads 4 and slots 3"),
        ({"width": 0}, "got width 0"),
        ({"decay": 1.5}, "got decay 1.5"),
        ({"strength": 0.0}, "got strength 0.0"),
    ],
)
def test_bad_sizes_are_refused(options, message):
    """The message gives the option, its value and what was expected."""
    with pytest.raises(OptionError, match=message):
        LRUAMemory(**options)


def test_an_interface_of_another_length_is_refused():
    """The message gives both lengths."""
    memory = LRUAMemory(6, 4, 2)
    with pytest.raises(MisfitError, match="got an interface of 9 numbers, expected interface_size 10"):
        memory.step(torch.zeros(1, 9), memory.initial_state(1))
