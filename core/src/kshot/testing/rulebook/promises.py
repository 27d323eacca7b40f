"""Rules for learners: what their needs and the protocol promise."""

from __future__ import annotations

import gc
import io
import math
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from kshot.episode import Episode, Examples, Support
from kshot.errors import KshotError
from kshot.kinds import KINDS
from kshot.spec import Needs, bounds
from kshot.testing import sample_tasks
from kshot.testing.cases import Case, precise
from kshot.testing.compare import gap, tolerance
from kshot.testing.outer_steps import clear, gradient
from kshot.testing.rulebook.learner_rule import TABLES, claims, first_of, learner_rule, only
from kshot.testing.rulebook.rule import Broken, Rule, add, broken
from kshot.testing.subjects import LearnerSubject


def expected_shape(case: Case, episode: Episode, x: Tensor) -> tuple[int, ...]:
    """Return the shape that predictions for ``x`` must have, by kind of the tasks."""
    B, n = x.shape[:2]
    spec = case.tasks.spec
    if case.kind == "classification":
        return B, n, episode.support.way or 0
    if case.kind == "sequence" and not episode.query.y.is_floating_point():
        return B, n, *spec.target_shape, spec.way if isinstance(spec.way, int) else 0
    return B, n, *spec.target_shape


@learner_rule()
def predictor_shape(case: Case) -> None:
    """Predictions are finite floating-point numbers of the shape that their kind requires, for any number of queries,
    and the kind's scorer accepts them. The shapes are: classification [B, n, N], regression [B, n, *target], sequence
    [B, T, *], objective [B, T, P], control [B, n, *target], or int64 [B, n] if actions are discrete.
    """
    learner = case.warmed()
    inputs = case.probe(case.episode())
    counts = {1, inputs.shape[1]} if case.kind in TABLES else {inputs.shape[1]}
    for n in sorted(counts):
        x = inputs[:, :n]
        answer = case.predict(learner, case.episode(), x)
        wanted = expected_shape(case, case.episode(), x)
        if tuple(answer.shape) != wanted:
            broken(f"got predictions of shape {tuple(answer.shape)} for {n} queries per task, expected {wanted}")
        if (way := case.tasks.spec.way) is not None and case.kind == "control":
            if answer.dtype != torch.int64 or int(answer.min()) < 0 or int(answer.max()) >= int(way):  # type: ignore[arg-type]
                broken(
                    f"got actions {answer.dtype} {torch.unique(answer).tolist()}, expected int64 from 0 to {way} - 1"
                )
        elif not answer.is_floating_point():
            broken(f"got predictions of type {answer.dtype}, expected floating-point numbers")
        if not bool(torch.isfinite(answer.double()).all()):
            allowed = case.kind == "classification" and bool((answer == -math.inf).any()) and not answer.isnan().any()
            if not allowed:  # a logit of minus infinity is a probability of 0
                broken("got predictions that are NaN or infinite, expected finite numbers")
    with torch.no_grad():
        episode = case.episode()
        predictor = learner.adapt(episode.for_adapting(learner.needs.queries))
        for name, values in KINDS[case.kind].score(predictor, episode).items():
            if values.shape[:1] != (episode.size,):
                broken(f"got the score {name!r} of shape {tuple(values.shape)}, expected one score per task")


def _unlabelled_support(case: Case) -> str | None:
    low, _ = bounds(case.tasks.spec.shot)
    return "the support is empty" if low == 0 else None


@learner_rule(first_of(only("classification"), _unlabelled_support))
def unbalanced_support(case: Case) -> None:
    """A support with different numbers of examples per class gives finite logits of the right shape, or is refused
    with a KshotError.
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
            f"got {type(raised).__name__} ({raised}) for a support in which one class has one more example, expected "
            "logits or a KshotError"
        )
    wanted = (*episode.query.y.shape, support.way)
    if tuple(logits.shape) != wanted or logits.isnan().any():
        broken(
            f"got logits of shape {tuple(logits.shape)} for a support in which one class has one more example, "
            f"expected finite ones of shape {wanted}"
        )


@learner_rule(first_of(only("classification"), claims("labels")))
def label_equivariance(case: Case) -> None:
    """If ``needs.invariant`` has ``labels``, renumbering the classes renumbers the predictions in the same way."""
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
        broken(
            f"got logits that differ by {far:.2g} of the greatest one for renumbered classes, expected the renumbered "
            "logits; or remove 'labels' from needs.invariant"
        )


@learner_rule(first_of(only(*TABLES), _unlabelled_support, claims("order")))
def order_invariance(case: Case) -> None:
    """If ``needs.invariant`` has ``order``, predictions do not depend on the order of the support's examples, nor on
    that of the unlabelled ones.
    """
    learner, cast, dtype = precise(case)
    episode = cast(case.episode())
    support = episode.support
    generator = torch.Generator().manual_seed(2)
    order = torch.randperm(support.x.shape[1], generator=generator)
    others = {"support": attrs.evolve(support, x=support.x[:, order], y=support.y[:, order])}
    if support.unlabelled is not None:
        order = torch.randperm(support.unlabelled.shape[1], generator=generator)
        others["unlabelled examples"] = attrs.evolve(support, unlabelled=support.unlabelled[:, order])
    before = case.predict(learner, episode)
    for name, other in others.items():
        after = case.predict(learner, attrs.evolve(episode, support=other))
        if (far := gap(before, after)) > tolerance(dtype):
            broken(
                f"got predictions that differ by {far:.2g} of the greatest one with the {name} in another order, "
                "expected the same; or remove 'order' from needs.invariant"
            )


@learner_rule()
def state_round_trips(case: Case) -> None:
    """The ``state_dict`` has everything that a learner knows: saved, loaded with ``weights_only=True`` and put into a
    learner with another initialisation, which has been used, it gives the same predictions.
    """
    learner = case.trained()
    file = io.BytesIO()
    torch.save(learner.state_dict(), file)
    file.seek(0)
    try:
        state = torch.load(file, weights_only=True)
    except Exception as raised:
        broken(
            f"state_dict: got {type(raised).__name__} when loading it with weights_only=True, expected tensors only: "
            f"{raised}"
        )
    other = case.build(seed=1)
    case.predict(other, case.episode())  # what it keeps of this must not outlive its parameters
    other.load_state_dict(state)
    predictions = [case.predict(one, case.episode()) for one in (learner, other)]
    if (far := gap(*predictions)) > 1e-5:
        broken(
            f"got predictions that differ by {far:.2g} of the greatest one from a learner with the same state_dict, "
            "expected the same; keep what the learner learns in parameters and buffers, and nothing of an episode"
        )


def tensors_alive() -> tuple[int, int]:
    """Count the tensors that the garbage collector tracks, and their bytes (each storage once)."""
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
    """Adapting to one episode after another, and training on it, keeps no tensors: their number and their bytes do not
    grow.
    """
    learner = case.warmed()
    alive = []
    episode = 0
    gc.collect()
    gc.freeze()  # ignore the objects that exist already: this saves most of the time
    try:
        for _ in range(4):
            for _ in range(4):
                case.predict(learner, case.episode(1, first=episode * case.tasks.spec.block))
                episode += 1
            gradient(learner, case.episode(1, split=case.training))
            clear(learner)
            alive.append(tensors_alive())
    finally:
        gc.unfreeze()
    counts, sizes = zip(*alive[1:], strict=True)
    for what, values in (("tensors", counts), ("bytes of tensors", sizes)):
        if values[0] < values[1] < values[2]:
            broken(
                f"got {', '.join(map(str, values))} new {what} after 8, 12 and 16 episodes, expected no growth; keep "
                "no tensors on the learner"
            )


def _no_accelerator(_: Case) -> str | None:
    return None if torch.cuda.is_available() else "this machine has no CUDA device"


@learner_rule(_no_accelerator)
def devices(case: Case) -> None:
    """A learner moved to another device, with its episodes, gives the same predictions up to rounding, and trains."""
    from kshot.episode import map_tensors

    learner = case.warmed()
    here = case.predict(learner, case.episode())
    learner.to("cuda")
    moved = map_tensors(lambda t: t.to("cuda"), case.episode())
    there = case.predict(learner, moved)
    if there.device.type != "cuda":
        broken(f"got predictions on {there.device} for inputs on cuda, expected them on cuda")
    if (far := gap(here, there.cpu())) > 2e-2:
        broken(f"got predictions on cuda that differ by {far:.2g} of the greatest one, expected those of the CPU")
    gradient(learner, map_tensors(lambda t: t.to("cuda"), case.episode(split=case.training)))


# --- needs-are-true concerns the class, not one case ----------------------------------------------


def needs_are_true(subject: LearnerSubject) -> None:
    """``needs`` is a ``kshot.Needs``, both on the class and on the instance, which may have fewer kinds. The manifest
    states the same kinds. The learner can learn every kind that it declares, does not use what it declares not to
    need, and accepts another way or an empty support if it declares so.
    """
    factory = subject.source.factory
    declared = getattr(factory, "needs", None)
    if isinstance(factory, type) and not isinstance(declared, Needs):
        broken(f"got {type(declared).__name__} for {factory.__name__}.needs, expected a kshot.Needs on the class")
    for case in subject.cases:
        learner = case.build()
        if not isinstance(learner, nn.Module):
            broken(f"got a {type(learner).__name__}, expected a torch.nn.Module")
        if not isinstance(learner.needs, Needs):
            broken(f"got {type(learner.needs).__name__} for needs of the instance, expected a kshot.Needs")
        if subject.declared is not None and not set(learner.needs.kinds) <= set(subject.declared.kinds):
            broken(
                f"got the kinds {', '.join(learner.needs.kinds)} in needs of the instance, expected only kinds of the "
                f"class: {', '.join(subject.declared.kinds)}"
            )
        if case.kind not in learner.needs.kinds:
            broken(
                f"got tasks of the kind {case.kind} ({case.name}), expected needs.kinds to have it; it is "
                f"{', '.join(learner.needs.kinds)}"
            )
    plugin = subject.source.plugin
    kinds = subject.declared.kinds if subject.declared is not None else ()
    if plugin is not None and kinds and plugin.kinds and set(plugin.kinds) != set(kinds):
        broken(f"got needs.kinds {', '.join(kinds)}, expected the kinds in the manifest: {', '.join(plugin.kinds)}")
    for case in subject.cases:
        try:
            _check_case(case)
        except Broken as violation:
            broken(f"on {case.name}: {violation}")
    _check_other_kinds(subject)


def _check_case(case: Case) -> None:
    """Add what the learner declares not to need, remove what is optional, and try another way."""
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
            predictions = _try(
                case,
                learner,
                attrs.evolve(episode, support=attrs.evolve(episode.support, **{name: value})),
                f"with {name}, which it declares not to need",
            )
            if (far := gap(plain, predictions)) > 0:
                broken(
                    f"got predictions that differ by {far:.2g} of the greatest one with {name}, expected the same, "
                    f"because needs.{name} is 'no'"
                )
        for name in ("semantics", "unlabelled"):
            if getattr(needs, name) == "optional" and episode.support.x.shape[1]:
                without: dict[str, Any] = {name: None}
                bare = attrs.evolve(episode, support=attrs.evolve(episode.support, **without))
                _try(case, learner, bare, f"without {name}, which it declares optional")
        if needs.variable_way:
            _check_way(case, learner, episode)
    if case.kind == "objective" and needs.variable_parameters:
        _check_parameters(case, learner)


def _check_parameters(case: Case, learner: Any) -> None:
    """Minimise objectives with more parameters than the learner was built for."""
    P = case.tasks.spec.target_shape[0] + 2
    tasks = sample_tasks.Quadratics(parameters=P)
    points = _try(
        case,
        learner,
        tasks.sample("test", [0, 1]),
        f"on objectives with {P} parameters, although needs.variable_parameters is True",
    )
    if points.shape[-1] != P:
        broken(
            f"got points of shape {tuple(points.shape)} for objectives with {P} parameters, expected {P} as last axis, "
            "because needs.variable_parameters is True"
        )


def _check_way(case: Case, learner: Any, episode: Episode) -> None:
    """Predict an episode without its last class: the learner was built for another way."""
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
    answer = _try(case, learner, fewer, f"with {N - 1} classes, although needs.variable_way is True")
    if answer.shape[-1] != N - 1:
        broken(
            f"got logits of shape {tuple(answer.shape)} for {N - 1} classes, expected {N - 1} as last axis, because "
            "needs.variable_way is True"
        )


def _try(case: Case, learner: Any, episode: Episode, with_what: str) -> Tensor:
    try:
        return case.predict(learner, episode)
    except Broken:
        raise
    except Exception as raised:
        broken(f"{with_what}: got {type(raised).__name__} ({raised}), expected predictions")


def _check_other_kinds(subject: LearnerSubject) -> None:
    """Try the declared kinds that the given tasks do not cover on the kit's own tasks."""
    if not subject.given or subject.declared is None:
        return
    tried = {case.kind for case in subject.cases}
    for kind in subject.declared.kinds:
        if kind not in tried:
            case = Case(kind, sample_tasks.example(kind), subject.source)
            try:
                case.build()
            except KshotError:
                continue  # with these options it does not learn this kind
            _try(case, case.warmed(), case.episode(), f"on {kind}, which needs.kinds has")


add(Rule("needs-are-true", "learners", needs_are_true, lambda subject: None))
