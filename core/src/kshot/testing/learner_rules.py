"""Rules for learners. Each is tried on every task distribution that the learner is tried on."""

from __future__ import annotations

import gc
import io
import math
from collections.abc import Callable
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from kshot.episode import Episode, Examples, Support
from kshot.errors import KshotError
from kshot.kinds import KINDS
from kshot.randomness import seeded
from kshot.spec import Needs, bounds
from kshot.testing import sample_tasks
from kshot.testing.compare import changed, clones, difference, gap, held, named_tensors, tolerance
from kshot.testing.rule import Broken, Rule, add, broken, named
from kshot.testing.subjects import (
    Case,
    LearnerSubject,
    gradient,
    gradient_of,
    precise,
    restore,
    state_of,
)

Check = Callable[[Case], None]
Unless = Callable[[Case], "str | None"]

TABLES = ("classification", "regression")
"""The kinds whose episodes are tables of examples: their queries stand for themselves."""


def everywhere(_: Case) -> None:
    """The rule holds for all tasks."""


def learner_rule(unless: Unless = everywhere) -> Callable[[Check], Check]:
    """Put a check on the list of rules for learners: it is tried on each case for which ``unless`` says nothing."""

    def put(check: Check) -> Check:
        def on_every_case(subject: LearnerSubject) -> None:
            for case in subject.cases:
                if unless(case) is None:
                    try:
                        check(case)
                    except Broken as found:
                        broken(f"on {case.name}: {found}")
                    except Exception as raised:
                        raised.add_note(f"on {case.name}")
                        raise

        def on_no_case(subject: LearnerSubject) -> str | None:
            reasons = [unless(case) for case in subject.cases]
            return None if None in reasons else "; ".join(dict.fromkeys(r for r in reasons if r))

        on_every_case.__doc__ = check.__doc__
        add(Rule(named(check), "learners", on_every_case, on_no_case))
        return check

    return put


def only(*kinds: str) -> Unless:
    """The rule holds for these kinds."""
    return lambda case: None if case.kind in kinds else f"it learns {case.kind}"


def first_of(*reasons: Unless) -> Unless:
    """The rule holds where all of these say nothing."""
    return lambda case: next((r for r in (reason(case) for reason in reasons) if r is not None), None)


def claims(what: str) -> Unless:
    """The rule holds for learners that claim this invariance."""
    return lambda case: None if what in case.needs.invariant else f"it does not claim to be invariant to {what}"


# --- What a learner sees --------------------------------------------------------------------------


def poisoned(y: Tensor, way: int | None) -> Tensor:
    """Other labels than ``y``; other numbers, NaN among them, where targets are numbers."""
    if y.is_floating_point():
        wrong = -1e3 * (y.nan_to_num() + 1)
        wrong.flatten()[::2] = torch.nan
        return wrong
    return (y + 1) % way if way and way > 1 else 1 - y


@learner_rule()
def query_labels_unseen(case: Case) -> None:
    """Query labels reach no prediction: after ``meta_gradient`` on an episode with wrong query labels, with the
    learner's state put back, ``adapt`` and its predictions are the same, bit for bit, as with the true ones. In a
    stream, whose input at t + 1 shows the label of t, the label y_t does not affect predictions up to t.
    """
    learner = case.warmed()
    state = state_of(learner)
    found = []
    for poison in (False, True):
        episode = case.episode(split=case.training)
        if poison:
            y = poisoned(episode.query.y, episode.support.way)
            episode = attrs.evolve(episode, query=attrs.evolve(episode.query, y=y))
        gradient(learner, episode)
        restore(learner, state)
        found.append(case.predict(learner, case.episode(split=case.training)))
    if gap(*found) > 0:
        broken(f"with other query labels, predictions differ by {gap(*found):.2g} of the greatest one; expected no bit")
    if "stream" in case.tasks.spec.provides:
        _check_causal(case, learner)


def _check_causal(case: Case, learner: Any) -> None:
    episode, other = case.episode(), case.episode(first=case.tasks.spec.block * 7)
    x = episode.query.x
    T = min(x.shape[1], other.query.x.shape[1])
    whole = case.predict(learner, episode, x[:, :T])
    for t in {0, T // 2, T - 2} - {-1}:
        later = torch.cat([x[:, : t + 1], other.query.x[: len(x), t + 1 : T]], 1)
        seen = case.predict(learner, case.episode(), later)
        far = gap(whole[:, : t + 1], seen[:, : t + 1])
        if far > 1e-5:
            broken(
                f"with another stream from step {t + 1} on, which shows y_{t}, predictions up to step {t} differ by "
                f"{far:.2g} of the greatest one; expected the same"
            )


@learner_rule()
def adapt_changes_nothing(case: Case) -> None:
    """``adapt`` and its predictor leave parameters, buffers, gradients, ``requires_grad``, the mode of every
    submodule, the support's tensors and the states of all random generators as they were; with gradients enabled and
    without. Learners are adapted in evaluation mode.
    """
    learner = case.warmed()
    for p in learner.parameters():
        p.grad = torch.full_like(p, 0.5)
    for enabled in (False, True):
        episode = case.episode()
        shown = clones(named_tensors(episode.support))
        before = held(learner)
        with torch.set_grad_enabled(enabled):
            x = case.probe(episode)
            learner.adapt(episode.for_adapting(learner.needs.queries))(x)
        if names := changed(before, held(learner)):
            where = "enabled" if enabled else "disabled"
            broken(f"with gradients {where}, these are not as they were: {', '.join(names[:5])}")
        if found := difference(shown, named_tensors(episode.support), 0):
            broken(f"the support was written to: {found}")


@learner_rule()
def predictors_are_values(case: Case) -> None:
    """A predictor stays what it was when the learner adapts to another task: nothing of an episode stays on the
    learner.
    """
    learner = case.warmed()
    far = case.tasks.spec.block * 5
    with torch.no_grad():
        first, second = case.episode(), case.episode(first=far)
        x = case.probe(first)
        expected = case.predict(learner, case.episode(), x)
        predictor = learner.adapt(first.for_adapting(learner.needs.queries))
        learner.adapt(second.for_adapting(learner.needs.queries))(case.probe(second))
        found = predictor(x)
    if (apart := gap(expected, found)) > tolerance(found.dtype):
        broken(
            f"after the learner adapted to another task, a predictor's answers differ by {apart:.2g} of the greatest "
            "one; expected the same: what adapt learns belongs to the predictor"
        )


@learner_rule()
def deterministic(case: Case) -> None:
    """The same state and the same episode give the same predictions whatever the global random state, and the same
    gradient from the same global random state: chance while adapting comes from ``kshot.generator(key, purpose)``.
    """
    learner = case.warmed()
    found = []
    for seed in (1, 2):
        with seeded("deterministic", seed):
            found.append(case.predict(learner, case.episode()))
    if (far := gap(*found)) > 1e-6:
        broken(
            f"adapting twice to one episode, predictions differ by {far:.2g} of the greatest one; expected the same: "
            "draw from kshot.generator(support.key[b], purpose)"
        )
    first, second = (gradient_of(learner, case.episode(split=case.training), seed=3) for _ in range(2))
    if where := difference(first, second, within=1e-5):
        broken(f"two gradients of one episode from the same random state: {where}")


# --- Queries and batches --------------------------------------------------------------------------


@learner_rule(only(*TABLES))
def query_permutation(case: Case) -> None:
    """Predictions follow a permutation of the queries; where ``needs.queries`` is ``independent``, each query alone
    gets the same prediction as together with the others.
    """
    learner, cast, dtype = precise(case)
    x = cast(case.episode()).query.x
    together = case.predict(learner, cast(case.episode()), x)
    order = torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(5))
    followed = case.predict(learner, cast(case.episode()), x[:, order])
    if (far := gap(together[:, order], followed)) > tolerance(dtype):
        broken(f"with the queries in another order, predictions differ by {far:.2g} of the greatest one")
    if learner.needs.queries == "independent":
        alone = [case.predict(learner, cast(case.episode()), x[:, i : i + 1]) for i in range(x.shape[1])]
        if (far := gap(together, torch.cat(alone, 1))) > tolerance(dtype):
            broken(
                f"one by one, queries get predictions that differ by {far:.2g} of the greatest one from those "
                "together; expected the same, or needs.queries = 'joint'"
            )


def _cannot_batch(case: Case) -> str | None:
    if case.needs.couples_tasks:
        return "it couples the tasks of a meta-batch"
    return "their blocks have one episode" if case.size < 2 else None


@learner_rule(_cannot_batch)
def batch_equals_singles(case: Case) -> None:
    """Several tasks together give the same predictions as each alone, and their gradient is the mean of the tasks'
    own; unless ``needs.couples_tasks``. In float64 where the learner can; the gradient only where it does not draw
    from torch's generator while training (dropout).
    """
    learner, cast, dtype = precise(case)
    indices = range(case.size)
    together = case.predict(learner, cast(case.episode()))
    alone = torch.cat([case.predict(learner, cast(case.single(i))) for i in indices])
    if (far := gap(together, alone)) > tolerance(dtype):
        broken(
            f"{case.size} tasks adapted to together get predictions that differ by {far:.2g} of the greatest one from "
            "those of each task alone; expected the same, or needs.couples_tasks"
        )
    both = [gradient_of(learner, cast(case.episode(split=case.training)), seed) for seed in (1, 2)]
    if difference(both[0], both[1]):
        return
    singles = [gradient_of(learner, cast(case.single(i, case.training))) for i in indices]
    names = both[0].keys() | {n for found in singles for n in found}
    mean = {n: sum((g[n] for g in singles if n in g), torch.zeros(())) / case.size for n in names}
    whole = {n: both[0].get(n, torch.zeros_like(mean[n])) for n in names}
    largest = max((float(g.abs().max()) for g in mean.values() if g.numel()), default=0.0)
    for n in sorted(names):
        apart = float((mean[n] - whole[n]).abs().max()) / max(largest, 1e-30)
        if apart > tolerance(dtype):
            broken(
                f"the gradient of {n} over {case.size} tasks differs by {apart:.2g} of the greatest gradient from the "
                "mean over each task alone; expected the mean, or needs.couples_tasks"
            )


# --- The gradient ---------------------------------------------------------------------------------


@learner_rule()
def gradient_accumulates(case: Case) -> None:
    """``meta_gradient`` adds to what is in ``.grad``, leaves the parameters alone and returns finite scalars."""
    learner = case.warmed()
    own = gradient_of(learner, case.episode(split=case.training))
    state = state_of(learner)
    for p in learner.parameters():
        p.grad = torch.full_like(p, 2.0) if p.requires_grad else None
    metrics = gradient(learner, case.episode(split=case.training))
    stepped = [n for n, p in learner.named_parameters() if not torch.equal(p, state[n])]
    if stepped:
        broken(f"meta_gradient changed the parameters {', '.join(stepped[:5])}; the engine's optimizer steps them")
    for name, p in learner.named_parameters():
        if not p.requires_grad:
            continue
        added = own.get(name, torch.zeros_like(p))
        far = math.inf if p.grad is None else float((p.grad - 2.0 - added).abs().max())
        if far > 1e-3 * (2.0 + float(added.abs().max())):
            broken(
                f".grad of {name} was 2 everywhere before meta_gradient; it is off by {far:.2g} from 2 + the gradient "
                "afterwards: add to .grad, don't overwrite or clear it"
            )
    for name, value in metrics.items():
        if not (isinstance(value, int | float) or (isinstance(value, Tensor) and value.ndim == 0)):
            broken(f"metric {name!r} is {_kind_of(value)}, expected a scalar")
        if not math.isfinite(float(value)):
            broken(f"metric {name!r} is {float(value)}, expected a finite number")
        if isinstance(value, Tensor) and value.requires_grad:
            broken(f"metric {name!r} holds on to its graph; return {name}.detach()")


def _kind_of(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _inexact(case: Case) -> str | None:
    return None if case.needs.exact_gradient else "it does not claim that its gradient is that of the loss"


@learner_rule(_inexact)
def finite_differences(case: Case) -> None:
    """Where ``needs.exact_gradient``: ``.grad`` is the derivative of ``metrics["loss"]``. Along eight random directions
    most central differences agree with it; in float64 where the learner can, with fixed randomness and with buffers
    put back between evaluations. Kinks (ReLU, max pooling) may spoil a few.
    """
    learner, cast, dtype = precise(case)
    exact = dtype == torch.float64
    state = state_of(learner)
    parameters = [(n, p) for n, p in learner.named_parameters() if p.requires_grad]

    def loss() -> float:
        metrics = gradient(learner, cast(case.episode(split=case.training)))
        if "loss" not in metrics:
            broken("it claims the exact gradient, but metrics have no 'loss'")
        return float(metrics["loss"])

    own = gradient_of(learner, cast(case.episode(split=case.training)))
    total = math.sqrt(sum(float(g.double().square().sum()) for g in own.values()))
    generator = torch.Generator().manual_seed(11)
    eps, agree, shown = (1e-6, 1e-4, "") if exact else (3e-3, 0.1, "")
    good, directions = 0, 8
    for _ in range(directions):
        along = {}
        for n, p in parameters:
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p)
            scale = p.detach().norm().clamp_min(0.1) / noise.norm().clamp_min(1e-12)
            along[n] = noise * scale
            if not exact and n in own and total > 0:  # float32 sees a slope only along the gradient
                along[n] = along[n] / math.sqrt(len(parameters)) + own[n] / total
        values = []
        for sign in (1, -1):
            restore(learner, {**state, **{n: state[n] + sign * eps * d for n, d in along.items()}})
            values.append(loss())
        restore(learner, state)
        slope = (values[0] - values[1]) / (2 * eps)
        claimed = sum(float((own[n].double() * along[n].double()).sum()) for n in own if n in along)
        size = sum(float((own[n].double() * along[n].double()).square().sum()) for n in own if n in along) ** 0.5
        noise_floor = 1e-9 if exact else 1e-6 * (1 + abs(values[0])) / eps
        if abs(slope - claimed) <= agree * max(abs(slope), abs(claimed), size) + noise_floor:
            good += 1
        else:
            shown = f"the loss rises by {slope:.6g} a unit, .grad says {claimed:.6g}"
    if good < 6:
        broken(
            f"along {directions - good} of {directions} directions .grad is not the slope of metrics['loss']: {shown}"
        )


# --- What is promised -----------------------------------------------------------------------------


def expected_shape(case: Case, episode: Episode, x: Tensor) -> tuple[int, ...]:
    """What a predictor's answer to ``x`` has to look like, by its kind."""
    B, n = x.shape[:2]
    spec = case.tasks.spec
    if case.kind == "classification":
        return B, n, episode.support.way or 0
    if case.kind == "sequence" and not episode.query.y.is_floating_point():
        return B, n, spec.way if isinstance(spec.way, int) else 0
    return B, n, *spec.target_shape


@learner_rule()
def predictor_shape(case: Case) -> None:
    """Predictions are finite floating-point numbers in the shape of their kind, for any number of queries, and the
    kind's scorer takes them: classification [B, n, N], regression [B, n, \\*target], sequence [B, T, \\*],
    objective [B, T, P]. Actions may be integers.
    """
    learner = case.warmed()
    whole = case.probe(case.episode())
    counts = {1, whole.shape[1]} if case.kind in TABLES else {whole.shape[1]}
    for n in sorted(counts):
        x = whole[:, :n]
        answer = case.predict(learner, case.episode(), x)
        wanted = expected_shape(case, case.episode(), x)
        if tuple(answer.shape) != wanted and not (case.kind == "control" and answer.shape[:2] == x.shape[:2]):
            broken(f"predictions for {n} queries a task have shape {tuple(answer.shape)}, expected {wanted}")
        if case.kind != "control" and not answer.is_floating_point():
            broken(f"predictions are {answer.dtype}, expected floating-point numbers")
        if not bool(torch.isfinite(answer.double()).all()):
            allowed = case.kind == "classification" and bool((answer == -math.inf).any()) and not answer.isnan().any()
            if not allowed:  # minus infinity is a probability of 0
                broken("predictions are NaN or infinite")
    with torch.no_grad():
        episode = case.episode()
        predictor = learner.adapt(episode.for_adapting(learner.needs.queries))
        for name, values in KINDS[case.kind].score(predictor, episode).items():
            if values.shape[:1] != (episode.size,):
                broken(f"the score {name!r} has shape {tuple(values.shape)}, expected one of each task")


def _unlabelled_support(case: Case) -> str | None:
    low, _ = bounds(case.tasks.spec.shot)
    return "the support is empty" if low == 0 else None


@learner_rule(first_of(only("classification"), _unlabelled_support))
def unbalanced_support(case: Case) -> None:
    """A support with different numbers of examples a class gives finite logits of the right shape, or is refused with
    an error of kshot's own.
    """
    learner = case.warmed()
    episode = case.episode()
    support = attrs.evolve(
        episode.support,
        x=torch.cat([episode.support.x, episode.query.x[:, :1]], 1),
        y=torch.cat([episode.support.y, episode.query.y[:, :1]], 1),
    )
    try:
        logits = case.predict(learner, attrs.evolve(episode, support=support))
    except KshotError:
        return
    except Exception as raised:
        broken(
            f"one class with an example more raised {type(raised).__name__}: {raised}; expected logits or a KshotError"
        )
    wanted = (*episode.query.y.shape, support.way)
    if tuple(logits.shape) != wanted or logits.isnan().any():
        broken(f"one class with an example more gave logits of shape {tuple(logits.shape)}, expected finite {wanted}")


@learner_rule(first_of(only("classification"), claims("labels")))
def label_equivariance(case: Case) -> None:
    """Where ``needs.invariant`` has ``labels``: renumbering the classes renumbers the predictions."""
    learner, cast, dtype = precise(case)
    episode = cast(case.episode())
    support = episode.support
    N = support.way or 1
    renumbered = torch.arange(N).roll(1)  # label c becomes renumbered[c]
    semantics = None
    if support.semantics is not None:
        semantics = torch.empty_like(support.semantics)
        semantics[:, renumbered] = support.semantics
    other = attrs.evolve(support, y=renumbered[support.y], semantics=semantics)
    before = case.predict(learner, episode)
    after = case.predict(learner, attrs.evolve(episode, support=other))
    if (far := gap(before, after[..., renumbered])) > tolerance(dtype):
        broken(f"with classes renumbered, logits differ by {far:.2g} of the greatest one from the renumbered logits")


@learner_rule(first_of(only(*TABLES), _unlabelled_support, claims("order")))
def order_invariance(case: Case) -> None:
    """Where ``needs.invariant`` has ``order``: the order of the support's examples does not matter."""
    learner, cast, dtype = precise(case)
    episode = cast(case.episode())
    order = torch.randperm(episode.support.x.shape[1], generator=torch.Generator().manual_seed(2))
    other = attrs.evolve(episode.support, x=episode.support.x[:, order], y=episode.support.y[:, order])
    before = case.predict(learner, episode)
    after = case.predict(learner, attrs.evolve(episode, support=other))
    if (far := gap(before, after)) > tolerance(dtype):
        broken(f"with the support in another order, predictions differ by {far:.2g} of the greatest one")


@learner_rule()
def state_round_trips(case: Case) -> None:
    """The ``state_dict`` is all that a learner knows: saved, loaded with ``weights_only=True`` and put into a learner
    that was initialised otherwise, it gives the same predictions.
    """
    learner = case.trained()
    file = io.BytesIO()
    torch.save(learner.state_dict(), file)
    file.seek(0)
    try:
        state = torch.load(file, weights_only=True)
    except Exception as raised:
        broken(f"its state_dict can't be loaded with weights_only=True: {raised}")
    other = case.build(seed=1)
    other.load_state_dict(state)
    found = [case.predict(one, case.episode()) for one in (learner, other)]
    if (far := gap(*found)) > 1e-5:
        broken(
            f"a learner with the same state_dict gives predictions that differ by {far:.2g} of the greatest one; "
            "what it learns must be in parameters and buffers"
        )


def tensors_alive() -> tuple[int, int]:
    """How many tensors there are that the garbage collector watches, and their bytes (each storage once)."""
    gc.collect()
    tensors = [t for t in gc.get_objects() if issubclass(type(t), Tensor)]
    storages = {}
    for t in tensors:
        if t.layout == torch.strided and not t.is_meta:
            storage = t.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return len(tensors), sum(storages.values())


@learner_rule()
def flat_memory(case: Case) -> None:
    """Adapting to episode after episode keeps nothing: the tensors that are alive, and their bytes, don't grow."""
    learner = case.warmed()
    alive = []
    episode = 0
    gc.collect()
    gc.freeze()  # what was there before is not looked at: that saves most of the time
    try:
        for _ in range(4):
            for _ in range(4):
                case.predict(learner, case.episode(1, first=episode * case.tasks.spec.block))
                episode += 1
            alive.append(tensors_alive())
    finally:
        gc.unfreeze()
    counts, sizes = zip(*alive[1:], strict=True)
    for what, values in (("tensors", counts), ("bytes of tensors", sizes)):
        if values[0] < values[1] < values[2]:
            broken(f"new {what} alive after 8, 12 and 16 episodes: {', '.join(map(str, values))}; expected no growth")


def _no_accelerator(_: Case) -> str | None:
    return None if torch.cuda.is_available() else "this machine has no CUDA device"


@learner_rule(_no_accelerator)
def devices(case: Case) -> None:
    """Moved to another device with its episodes, a learner gives the same predictions to rounding, and trains."""
    from kshot.episode import map_tensors

    learner = case.warmed()
    here = case.predict(learner, case.episode())
    learner.to("cuda")
    moved = map_tensors(lambda t: t.to("cuda"), case.episode())
    there = case.predict(learner, moved)
    if there.device.type != "cuda":
        broken(f"predictions for inputs on cuda are on {there.device}")
    if (far := gap(here, there.cpu())) > 2e-2:
        broken(f"predictions on cuda differ by {far:.2g} of the greatest one from those on the CPU")
    gradient(learner, map_tensors(lambda t: t.to("cuda"), case.episode(split=case.training)))


# --- needs-are-true looks at the class, not at one case -------------------------------------------


def needs_are_true(subject: LearnerSubject) -> None:
    """``needs`` is a ``kshot.Needs``, on the class and on the instance, which may narrow it; the manifest says the
    same kinds; every kind it declares can be learned; what it says it does not need it does not use; another way
    and an empty support work where it says so.
    """
    factory = subject.source.factory
    declared = getattr(factory, "needs", None)
    if isinstance(factory, type) and not isinstance(declared, Needs):
        broken(f"{factory.__name__}.needs is {type(declared).__name__}, expected a kshot.Needs on the class")
    for case in subject.cases:
        learner = case.build()
        if not isinstance(learner, nn.Module):
            broken(f"a {type(learner).__name__} is no torch.nn.Module")
        if not isinstance(learner.needs, Needs):
            broken(f"needs of the instance is {type(learner.needs).__name__}, expected a kshot.Needs")
        if subject.declared is not None and not set(learner.needs.kinds) <= set(subject.declared.kinds):
            broken(
                f"the instance needs {', '.join(learner.needs.kinds)}, "
                f"the class only {', '.join(subject.declared.kinds)}"
            )
        if case.kind not in learner.needs.kinds:
            broken(
                f"it was tried on {case.name}, which are {case.kind}, "
                f"but needs.kinds is {', '.join(learner.needs.kinds)}"
            )
    plugin = subject.source.plugin
    kinds = subject.declared.kinds if subject.declared is not None else ()
    if plugin is not None and kinds and plugin.kinds and set(plugin.kinds) != set(kinds):
        broken(f"the manifest says {', '.join(plugin.kinds)}, needs.kinds is {', '.join(kinds)}")
    for case in subject.cases:
        try:
            _check_case(case)
        except Broken as found:
            broken(f"on {case.name}: {found}")
    _check_other_kinds(subject)


def _check_case(case: Case) -> None:
    learner = case.warmed()
    needs: Needs = learner.needs
    plain = case.predict(learner, case.episode())
    if case.kind == "classification":
        episode = case.episode()
        B, N = episode.size, episode.support.way or 1
        generator = torch.Generator().manual_seed(3)
        surplus: dict[str, Any] = {}
        if needs.semantics == "no":
            surplus["semantics"] = torch.randn(B, N, 5, generator=generator)
        if needs.unlabelled == "no":
            surplus["unlabelled"] = torch.rand(episode.query.x.shape, generator=generator)
        for name, value in surplus.items():
            found = _try(
                case,
                learner,
                attrs.evolve(episode, support=attrs.evolve(episode.support, **{name: value})),
                f"{name} that it says it does not need",
            )
            if (far := gap(plain, found)) > 0:
                broken(f"needs.{name} is 'no', but with {name} predictions differ by {far:.2g} of the greatest one")
        for name in ("semantics", "unlabelled"):
            if getattr(needs, name) == "optional" and episode.support.x.shape[1]:
                without: dict[str, Any] = {name: None}
                bare = attrs.evolve(episode, support=attrs.evolve(episode.support, **without))
                _try(case, learner, bare, f"without {name}, which it says is optional")
        if needs.variable_way:
            _check_way(case, learner, episode)


def _check_way(case: Case, learner: Any, episode: Episode) -> None:
    """The episode without its last class: another way than the learner was built for."""
    support, query, N = episode.support, episode.query, episode.support.way or 1
    if N < 3:
        return
    keep_s, keep_q = support.y[0] < N - 1, query.y[0] < N - 1
    first = Support(
        x=support.x[:1, keep_s],
        y=support.y[:1, keep_s],
        unlabelled=None if support.unlabelled is None else support.unlabelled[:1],
        semantics=None if support.semantics is None else support.semantics[:1, : N - 1],
        key=support.key[:1],
        way=N - 1,
    )
    fewer = Episode(first, Examples(query.x[:1, keep_q], query.y[:1, keep_q]), origin=None)
    answer = _try(case, learner, fewer, f"{N - 1} classes, though needs.variable_way")
    if answer.shape[-1] != N - 1:
        broken(f"needs.variable_way, but {N - 1} classes got logits of shape {tuple(answer.shape)}")


def _try(case: Case, learner: Any, episode: Episode, with_what: str) -> Tensor:
    try:
        return case.predict(learner, episode)
    except Broken:
        raise
    except Exception as raised:
        broken(f"{with_what}: raised {type(raised).__name__}: {raised}")


def _check_other_kinds(subject: LearnerSubject) -> None:
    """Where tasks were given: the declared kinds that they don't cover are tried on the kit's own tasks."""
    if not subject.given or subject.declared is None:
        return
    tried = {case.kind for case in subject.cases}
    for kind in subject.declared.kinds:
        if kind not in tried:
            case = Case(kind, sample_tasks.example(kind), subject.source)
            try:
                case.build()
            except KshotError:
                continue  # with these options it is no learner of this kind
            _try(case, case.warmed(), case.episode(), f"needs.kinds has {kind!r}")


add(Rule("needs-are-true", "learners", needs_are_true, lambda subject: None))
