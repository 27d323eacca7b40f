"""Traces compute the same numbers as ordinary runs, to the bit, and are not used where they would be wrong."""

import pickle
import random
import shutil
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from kshot import Lift
from kshot.errors import TrainingError
from kshot.inner import State, descend, keep_buffers
from kshot.inner import replays as module
from kshot.inner.identity import surroundings
from kshot.inner.traces import make_trace, without_autocast

_TABLE: dict[str, nn.Parameter] = {}


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def values(tasks: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    y = torch.arange(3).repeat(tasks, 2)
    return rand(tasks, 6, 6, seed=seed, dtype=dtype), y, rand(tasks, 6, 6, seed=seed + 1, dtype=dtype), y


class Learner(nn.Module):
    """MAML with whatever network, learned step sizes, and what a user may add."""

    def __init__(self, net: nn.Module, strategy: str, *, steps: int = 2, chunk: int | None = None) -> None:
        super().__init__()
        self.net, self.steps, self.lr = net, steps, 0.1
        self.alpha = nn.ParameterDict({n.replace(".", "/"): torch.full_like(p, 0.1) for n, p in net.named_parameters()})
        self.lift = Lift(strategy, chunk)

    def task(self, theta, x, y, xq, yq):
        def loss(state, data):
            return F.cross_entropy(state.call(self.net, data[0]), data[1])

        rates = {n.replace("/", "."): a * self.lr for n, a in self.alpha.items()}
        end, _ = descend(loss, theta, (x, y), lr=rates, steps=self.steps)
        return {"loss": loss(end, (xq, yq))}, end

    def step(self, *data, task=None):
        metrics, end = self.lift.mean_gradient(task or self.task, State.of(self.net), *data)
        keep_buffers(self.net, end)
        return metrics["loss"]

    @property
    def traces(self) -> int:
        return sum(len(work.traces) > 0 for work in self.lift._replays._works.values())


def mlp(dtype: torch.dtype = torch.float64) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)


def normed() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)).double()


def gradients(learner: nn.Module) -> list[torch.Tensor]:
    return [p.grad.clone() for p in learner.parameters() if p.grad is not None]


def pair(net=mlp, usual: str = "vmap", **options) -> tuple[Learner, Learner]:
    """Return two equal learners: one that traces, and one that runs as usual."""
    return Learner(net(), "traced", **options), Learner(net(), usual, **options)


def compare(traced: Learner, usual: Learner, data, *, exact: bool = True, **more) -> None:
    for learner in (traced, usual):
        learner.zero_grad()
    torch.manual_seed(1)
    losses = traced.step(*data, **more)
    state = torch.get_rng_state()
    torch.manual_seed(1)
    expected = usual.step(*data, **more)
    assert torch.equal(torch.get_rng_state(), state)
    pairs = [(losses, expected), *zip(gradients(traced), gradients(usual), strict=True)]
    pairs += list(zip(traced.buffers(), usual.buffers(), strict=True))
    assert all(torch.equal(a, b) if exact else torch.allclose(a, b, rtol=1e-9) for a, b in pairs)


@pytest.fixture(autouse=True)
def _restored_random_state():
    with torch.random.fork_rng():
        yield


# --- The same numbers -------------------------------------------------------------------------------------------------


def conv() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()
        return nn.Sequential(*layers, nn.Linear(12, 3)).double()


@pytest.mark.parametrize(
    ("net", "steps", "chunk"),
    [(mlp, 1, None), (mlp, 3, 2), (mlp, 5, 1), (normed, 1, 2), (normed, 3, None), (normed, 2, 1)],
)
def test_a_trace_computes_what_an_ordinary_run_computes(net, steps, chunk):
    """Losses, gradients of initial values and step sizes, and running statistics are equal to the bit."""
    traced, usual = pair(net, steps=steps, chunk=chunk, usual="loop" if chunk == 1 else "vmap")
    for seed in range(3):
        compare(traced, usual, values(5, seed))
    assert traced.traces == 1
    if net is mlp:  # running statistics have moved in the other one only
        compare(traced, Learner(net(), "loop", steps=steps), values(5, 7), exact=False)


def test_a_trace_adds_to_gradients_that_are_there():
    """As ``backward`` does."""
    traced, usual = pair()
    for seed in range(3):
        for learner in (traced, usual):
            learner.step(*values(4, seed))
    assert traced.traces == 1
    assert all(map(torch.equal, gradients(traced), gradients(usual)))


def test_parameters_are_read_anew():
    """An optimizer changes them in place, and ``load_state_dict`` too."""
    traced, usual = pair()
    for learner in (traced, usual):
        optimizer = torch.optim.Adam(learner.parameters(), lr=0.1)
        for seed in range(5):
            learner.zero_grad()
            learner.step(*values(4, seed))
            optimizer.step()
    assert traced.traces == 1
    assert all(map(torch.equal, traced.parameters(), usual.parameters()))


def test_dropout_draws_what_it_would_draw():
    """From torch's global generator, and no more than once."""

    def dropping():
        return nn.Sequential(mlp(), nn.Dropout(0.5))

    traced, usual = pair(dropping)
    for seed in range(4):
        compare(traced, usual, values(4, seed))
    assert traced.traces == 1


def test_gradients_reach_what_an_input_was_computed_from():
    """The start of the inner loop may be the output of another network."""
    results = []
    for strategy in ("vmap", "traced"):
        source, lift = nn.Parameter(rand(3)), Lift(strategy)

        def task(theta, x):
            end, _ = descend(lambda s, _: (s.parameters["w"] - x).square().sum(), theta, None, lr=0.1, steps=2)
            return {"loss": end.parameters["w"].pow(3).sum()}, end

        for seed in range(3):
            lift.mean_gradient(task, State({"w": source.sin()}, {}), rand(4, 3, seed=seed))
        results.append(source.grad)
    assert torch.equal(*results)


def test_autocast_is_in_the_trace():
    """The casts are recorded, and are not applied again."""
    traced, usual = pair(lambda: mlp(torch.float32))
    with torch.autocast("cpu", torch.bfloat16):
        for seed in range(3):
            compare(traced, usual, values(4, seed, torch.float32))
    assert traced.traces == 1
    compare(traced, usual, values(4, 9, torch.float32))  # not the trace of autocast


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_a_trace_under_autocast_is_of_that_device(device):
    """Without autocast it is another trace, and while a trace runs, no autocast casts a second time."""
    before = surroundings()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no such device here
        mode = torch.autocast(device, torch.bfloat16)
    mode._enabled = True
    with mode:
        assert surroundings() != before
        with without_autocast():
            assert not torch.is_autocast_enabled(device)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_convolutional_network_is_traced(layout):
    """With batch norm, and in the layout of channels that it is in."""
    x, y = rand(2, 6, 1, 4, 4), torch.arange(3).repeat(2, 2)
    traced, usual = pair(conv, steps=1, usual="auto")
    for learner in (traced, usual):
        learner.net.to(memory_format=layout)
    for _ in range(3):
        compare(traced, usual, (x, y, x, y))
    assert traced.traces == 1


def naive(net: nn.Module, data, steps: int) -> list[torch.Tensor]:
    """Return the meta-gradient of a loop over tasks and steps, by autograd alone."""
    names, start = zip(*net.named_parameters(), strict=True)
    losses = []
    for x, y, xq, yq in zip(*data, strict=True):
        moved = list(start)
        for _ in range(steps):
            outputs = torch.func.functional_call(net, dict(zip(names, moved, strict=True)), (x,))
            slopes = torch.autograd.grad(F.cross_entropy(outputs, y), moved, create_graph=True)
            moved = [p - 0.01 * g for p, g in zip(moved, slopes, strict=True)]
        outputs = torch.func.functional_call(net, dict(zip(names, moved, strict=True)), (xq,))
        losses.append(F.cross_entropy(outputs, yq))
    return list(torch.autograd.grad(torch.stack(losses).mean(), start))


compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
compiled = pytest.param(
    "compiled", None, marks=[pytest.mark.slow, pytest.mark.skipif(compiler is None, reason="no C++ compiler")]
)


@pytest.mark.parametrize("steps", [1, 3, 5])
@pytest.mark.parametrize(
    ("strategy", "chunk"), [("traced", None), ("traced", 2), compiled, ("vmap", None), ("vmap", 2), ("loop", None)]
)
def test_the_meta_gradient_of_every_strategy_is_that_of_a_naive_loop(strategy, chunk, steps):
    """To 1e-9 in float64."""
    learner, data = Learner(mlp(), strategy, steps=steps, chunk=chunk), values(5)
    for _ in range(2):  # the second is a replay
        learner.zero_grad()
        learner.step(*data)
    assert learner.traces == (strategy in ("traced", "compiled"))
    for p, expected in zip(learner.net.parameters(), naive(learner.net, data, steps), strict=True):
        torch.testing.assert_close(p.grad, expected, rtol=0, atol=1e-9)


# --- What a trace depends on ------------------------------------------------------------------------------------------


def test_a_changed_attribute_makes_a_new_trace():
    """A number that Python has read is in the trace."""
    traced, usual = pair()
    for steps, lr in ((2, 1.0), (3, 1.0), (3, 0.5)):
        traced.steps = usual.steps = steps
        traced.lr = usual.lr = lr
        for seed in range(3):
            compare(traced, usual, values(4, seed))
        assert traced.traces == 1
    usual.net.eval(), traced.net.eval()
    compare(traced, usual, values(4, 5))


def test_modes_that_alternate_keep_their_traces(monkeypatch):
    """A network that is evaluated in between has a trace for each mode, however often they alternate."""
    traced, usual = pair(normed, steps=1)
    made = []
    monkeypatch.setattr(module, "make_trace", lambda *args, **more: made.append(1) or make_trace(*args, **more))
    for seed in range(12):
        for learner in (traced, usual):
            learner.net.train(seed % 2 == 0)
        compare(traced, usual, values(4, seed))
    assert len(made) == 2


def test_what_changes_at_every_run_is_not_traced_forever():
    """A schedule that is a Python number would be traced at every iteration."""
    traced, usual = pair(steps=1)

    def run():
        for i in range(12):
            traced.lr = usual.lr = 1.0 / (1 + i)
            compare(traced, usual, values(2, i))

    with pytest.warns(UserWarning, match=r"Learner\.task can't be traced \(lr changes from run to run; keep it in a b"):
        run()


def test_frozen_and_replaced_parameters_are_seen():
    """They are other inputs."""
    traced, usual = pair(steps=1)

    def freeze(net):
        net[0].weight.requires_grad_(False)

    def replace(net):
        net[2] = nn.Linear(5, 3).double()

    for change in (freeze, replace):
        for seed in range(3):
            compare(traced, usual, values(4, seed))
        for learner in (traced, usual):
            torch.manual_seed(3)
            change(learner.net)
    for seed in range(3):
        compare(traced, usual, values(4, seed))


def test_a_new_closure_is_not_the_old_one():
    """A function that is made at every call closes over that call's values."""
    results = []
    for strategy in ("vmap", "traced"):
        theta, lift = nn.Parameter(rand(3)), Lift(strategy)
        for power in (2, 2, 2, 3, 3, 2):

            def task(state, x, power=power):
                return {"loss": (state.parameters["w"] - x).pow(power).sum() * power}, state

            lift.mean_gradient(task, State({"w": theta}, {}), rand(4, 3))
        results.append(theta.grad)
    assert torch.equal(*results)


def test_other_shapes_get_traces_of_their_own_up_to_a_bound(monkeypatch):
    """In the middle of a run too; the traces that were not used for longest are forgotten."""
    monkeypatch.setattr(module, "MOST_TRACES", 3)
    traced, usual = pair(steps=1)
    for tasks in (2, 3, 4, 5, 2):
        for seed in range(3):
            compare(traced, usual, values(tasks, seed))
    assert len(traced.lift._replays._works) == 3


def test_more_shapes_in_turn_than_traces_do_not_replace_one_another(monkeypatch):
    """Otherwise each run would make a trace. A trace that nobody uses any more makes room."""
    monkeypatch.setattr(module, "MOST_TRACES", 3)
    traced, usual = pair(steps=1)
    made = []
    monkeypatch.setattr(module, "make_trace", lambda *args, **more: made.append(1) or make_trace(*args, **more))
    for seed in range(4):
        for tasks in (2, 3, 4, 5, 6):
            compare(traced, usual, values(tasks, seed))
    assert len(made) == 3
    monkeypatch.setattr(module, "WAIT", 3)
    for seed in range(3):
        compare(traced, usual, values(6, seed))
    assert len(made) == 4


def test_several_threads_use_one_learner():
    """As in a server: each gets its own results, also while others make and drop traces."""
    lift, weight = Lift("traced"), nn.Parameter(rand(6, 3))

    def predict(state, x):
        return x @ state.parameters["w"]

    def work(number):
        for i in range(40):
            x = rand(2 + (number + i) % 24, 4, 6, seed=number + i)
            with torch.no_grad():
                got = lift.map(predict, State({"w": weight}, {}), x)
            assert torch.equal(got, torch.stack([x[b] @ weight for b in range(len(x))]).detach())
        return number

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(8))) == list(range(8))


def test_auto_waits(monkeypatch):
    """A short training does not pay for a trace."""
    monkeypatch.setattr(module, "WAIT", 4)
    learner, usual = Learner(mlp(), "auto"), Learner(mlp(), "vmap")
    for seed in range(4):
        assert learner.traces == 0
        compare(learner, usual, values(4, seed))
    assert learner.traces == 1
    compare(learner, usual, values(4, 9))


# --- Threads ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("net", [mlp, normed])
def test_two_threads_compute_what_one_computes(net, two_threads, monkeypatch):
    """To the bit: each chunk is computed by one of them, and they are added up in order."""
    seen, outputs = set(), module.Trace.outputs

    def watched(self, inputs):
        seen.add(threading.current_thread().name)
        assert torch.get_num_threads() == 1
        return outputs(self, inputs)

    traced, usual = pair(net, chunk=2)
    traced.step(*values(9)), usual.step(*values(9))
    monkeypatch.setattr(module.Trace, "outputs", watched)
    for seed in range(3):
        for threads, learner in ((2, traced), (1, usual)):
            torch.set_num_threads(threads)
            learner.zero_grad()
            learner.step(*values(9, seed))
            assert torch.get_num_threads() == threads
            with ThreadPoolExecutor(1) as later:  # a thread that begins after the replay
                assert later.submit(torch.get_num_threads).result() == threads
        assert all(map(torch.equal, gradients(traced), gradients(usual)))
        assert all(map(torch.equal, traced.buffers(), usual.buffers()))
    assert len(seen) == 2
    assert all(name.startswith("kshot-tasks") for name in seen)


def test_the_thread_that_adds_up_leaves_the_processors_to_the_tasks(two_threads, monkeypatch):
    """With two threads of torch, each sum of a large gradient would wake one that spins for milliseconds."""
    seen, finish = [], module.Gradient.finish

    def watched(self, outputs, inputs):
        seen.append((threading.current_thread(), torch.get_num_threads()))
        return finish(self, outputs, inputs)

    traced, _ = pair(chunk=2)
    traced.step(*values(9))
    monkeypatch.setattr(module.Gradient, "finish", watched)
    traced.step(*values(9))
    assert seen == [(threading.main_thread(), 1)] * 5
    assert torch.get_num_threads() == 2


def test_an_error_while_adding_up_restores_the_number_of_threads(two_threads, monkeypatch):
    """Also while the exception, which refers to the interrupted functions, is still in use."""

    def fails(self, outputs, inputs):
        raise MemoryError("too large")

    traced, _ = pair(chunk=2)
    traced.step(*values(9))
    monkeypatch.setattr(module.Gradient, "finish", fails)
    with pytest.raises(MemoryError) as caught:
        traced.step(*values(9))
    assert torch.get_num_threads() == 2
    del caught


def test_chunks_that_draw_run_in_order(two_threads, monkeypatch):
    """Otherwise the threads would draw one another's numbers."""
    monkeypatch.setattr(module, "ThreadPoolExecutor", None)
    traced, usual = pair(lambda: nn.Sequential(mlp(), nn.Dropout(0.5)), chunk=2)
    for seed in range(3):
        compare(traced, usual, values(6, seed))
    assert traced.traces == 1


# --- What is not traced -----------------------------------------------------------------------------------------------


class Untraceable(nn.Module):
    """A layer that does what a trace would not do again."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.calls = how, 0
        self.seen: list[int] = []

    def forward(self, x):
        if self.how == "counts":
            self.calls += 1
        elif self.how == "collects":
            self.seen.append(len(x))
        elif self.how == "decides":
            return x if x.sum().item() > 0 else 2 * x
        elif self.how == "draws":
            return x * float(np.random.default_rng().random())
        elif self.how == "tosses":
            return x if np.random.rand() < 2 else -x
        elif self.how == "tosses in Python":
            return x if random.random() < 2 else -x
        elif self.how == "fails":  # in the trace only, as an operation may that torch does not support there
            if type(_get_current_dispatch_mode()).__name__ == "_Recorder":
                raise NotImplementedError("no such\noperation")
        elif self.how == "reads":
            return x * (1 + sum(map(sum, x.detach().tolist())))
        elif self.how == "selects":
            return x[:, x.detach().sum(0) > -1e9]
        return x


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("counts", "calls"),
        ("collects", "changes"),
        ("decides", ""),
        ("draws", "something changes between runs"),
        ("fails", "(NotImplementedError: no such)"),
        ("tosses", "random numbers of Python or NumPy"),
        ("tosses in Python", "random numbers of Python or NumPy"),
        ("reads", "takes the numbers out of a tensor"),
        ("selects", "decides by the numbers in a tensor"),
        ("hooked", "has hooks"),
    ],
)
def test_what_can_not_be_traced_runs_as_usual_and_says_why(how, reason):
    """Once; the results are right."""

    def made():
        layer = Untraceable(how)
        if how == "hooked":
            layer.register_forward_hook(lambda m, i, o: 2 * o)
        return nn.Sequential(mlp(), layer)

    traced, usual = pair(made, usual="loop", chunk=1)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for seed in range(4):
            if how == "draws":
                traced.step(*values(3, seed))
            else:
                compare(traced, usual, values(3, seed))
    said = [str(w.message) for w in told if "can't be traced" in str(w.message)]
    assert len(said) == 1
    assert reason in said[0]
    assert traced.traces == 0


def _hook_gradient(learner):
    return learner.net[0].weight.register_hook(lambda gradient: 3 * gradient)


def _hook_accumulation(learner):
    return learner.alpha["0/weight"].register_post_accumulate_grad_hook(lambda p: (p.grad.mul_(3), None)[1])


def _hook_modules(learner):
    double = torch.nn.modules.module.register_module_forward_hook
    return double(lambda m, inputs, output: 2 * output if isinstance(m, nn.Tanh) else None)


@pytest.mark.parametrize("hook", [_hook_gradient, _hook_accumulation, _hook_modules])
@pytest.mark.parametrize("early", [True, False])
def test_hooks_of_parameters_and_of_all_modules_are_called(hook, early):
    """Whether they are registered before a trace is made or later; a trace would leave them out."""
    traced, usual = pair(usual="loop", chunk=1)
    if not early:
        for seed in range(2):
            compare(traced, usual, values(3, seed))
    hooks = [hook(learner) for learner in (traced, usual)[: 1 if hook is _hook_modules else 2]]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is not traced
            for seed in range(3):
                compare(traced, usual, values(3, seed))
    finally:
        for handle in hooks:
            handle.remove()


def test_a_foreign_parameter_is_not_forgotten():
    """One that is no attribute of the object would get no gradient from a trace."""
    foreign = _TABLE["foreign"] = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
    lift, theta = Lift("traced"), nn.Parameter(rand(3))

    def task(state, x):
        return {"loss": (_TABLE["foreign"] * state.parameters["w"] - x).square().sum()}, state

    def run():
        for _ in range(3):
            lift.mean_gradient(task, State({"w": theta}, {}), rand(4, 3))

    with pytest.warns(UserWarning, match="belongs neither to its state nor to its object"):
        run()
    x = rand(4, 3)
    expected = 3 * (2 * (foreign * theta - x) * theta).sum(1).mean()
    torch.testing.assert_close(foreign.grad, expected.detach())


def test_tools_that_watch_operations_see_them():
    """A counter of operations, or autograd's search for the origin of NaN."""
    from torch.utils.flop_counter import FlopCounterMode

    traced, usual = pair()
    for seed in range(3):
        compare(traced, usual, values(4, seed))
    counts = []
    for learner in (traced, usual):
        with FlopCounterMode(display=False) as counter:
            learner.step(*values(4, 4))
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("strategy", ["loop", "traced"])
def test_an_operation_without_a_second_derivative_is_named(strategy):
    """torch's fast attention has none on the CPU."""
    weight = nn.Parameter(rand(4, 4, dtype=torch.float32))

    def task(state, x):
        def loss(state, x):
            q = (x @ state.parameters["w"])[None, None]
            return F.scaled_dot_product_attention(q, q, q).square().sum()

        end, _ = descend(loss, state, x, lr=0.1, steps=1)
        return {"loss": loss(end, x)}, end

    with pytest.raises(TrainingError, match=r"Lift: got \w*scaled_dot_product\w*, .*(?s:.)*sdpa_kernel"):
        Lift(strategy, chunk=1).mean_gradient(task, State({"w": weight}, {}), rand(2, 5, 4, dtype=torch.float32))


def test_an_error_of_the_function_comes_out_as_it_is():
    """Also in the run that would have been traced."""
    traced, _ = pair()
    traced.step(*values(4))
    x, y, xq, yq = values(4)
    with pytest.raises(RuntimeError, match=r"shapes|size"):
        traced.step(x[..., :5], y, xq, yq)


def test_a_learner_with_traces_is_pickled_and_copied():
    """The traces stay behind."""
    traced, usual = pair()
    for seed in range(3):
        compare(traced, usual, values(4, seed))
    again = pickle.loads(pickle.dumps(traced))
    assert again.traces == 0
    for seed in range(3):
        compare(again, usual, values(4, seed))


# --- Compiled ---------------------------------------------------------------------------------------------------------


def test_without_a_compiler_a_trace_is_interpreted(monkeypatch):
    """The reason is told once, and the numbers are right."""

    def refuse(*args, **options):
        raise RuntimeError("No C++ compiler was found\nand more")

    monkeypatch.setattr("torch._inductor.compile", refuse)
    compiled, usual = Learner(mlp(), "compiled"), Learner(mlp(), "vmap")

    def run():
        for seed in range(3):
            compare(compiled, usual, values(4, seed))

    with pytest.warns(UserWarning, match=r"can't be compiled \(No C\+\+ compiler was found\); it is interpreted"):
        run()
    assert compiled.traces == 1


def test_the_first_run_is_compiled_too(monkeypatch):
    """So a resumed training computes what it would have computed without the interruption."""
    compiled = Learner(mlp(), "compiled")
    monkeypatch.setattr("torch._inductor.compile", lambda graph, *args, **options: graph)

    def differentiate(loss):
        raise AssertionError("it ran without a trace")

    monkeypatch.setattr("kshot.inner.lifting._differentiate", differentiate)
    torch.manual_seed(1)
    compiled.step(*values(4))
    assert torch.equal(torch.get_rng_state(), torch.manual_seed(1).get_state())
    assert len(gradients(compiled)) == 8
    theta = State.of(compiled.net).detach()
    lift = Lift("compiled")
    first = lift.map(lambda state, x: state.call(compiled.net, x), theta, rand(3, 2, 6))
    assert sum(len(work.traces) for work in lift._replays._works.values()) == 1
    assert torch.allclose(first, compiled.net(rand(3, 2, 6)))


@pytest.mark.slow
@pytest.mark.parametrize("net", [mlp, normed])
def test_a_compiled_trace_differs_by_rounding_only(net):
    """In float64, below 1e-9."""
    compiled, usual = Learner(net(), "compiled", steps=3), Learner(net(), "vmap", steps=3)
    for seed in range(3):
        compare(compiled, usual, values(5, seed), exact=False)
    assert compiled.traces == 1
