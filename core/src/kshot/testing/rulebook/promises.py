"""Rules for learners: what their needs and their protocol promise."""

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
from kshot.testing.outer_steps import gradient
from kshot.testing.rulebook.learner_rule import TABLES, claims, first_of, learner_rule, only
from kshot.testing.rulebook.rule import Broken, Rule, add, broken
from kshot.testing.subjects import LearnerSubject


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
    kind's scorer takes them: classification [B, n, N], regression [B, n, *target], sequence [B, T, *],
    objective [B, T, P], control [B, n, *target] or, where actions are discrete, int64 [B, n].
    """
    learner = case.warmed()
    whole = case.probe(case.episode())
    counts = {1, whole.shape[1]} if case.kind in TABLES else {whole.shape[1]}
    for n in sorted(counts):
        x = whole[:, :n]
        answer = case.predict(learner, case.episode(), x)
        wanted = expected_shape(case, case.episode(), x)
        if tuple(answer.shape) != wanted:
            broken(f"predictions for {n} queries a task have shape {tuple(answer.shape)}, expected {wanted}")
        if (way := case.tasks.spec.way) is not None and case.kind == "control":
            if answer.dtype != torch.int64 or int(answer.min()) < 0 or int(answer.max()) >= int(way):  # type: ignore[arg-type]
                broken(
                    f"actions are {answer.dtype} of {torch.unique(answer).tolist()}, expected int64 from 0 to {way} - 1"
                )
        elif not answer.is_floating_point():
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
    """Where ``needs.invariant`` has ``order``: the order of the support's examples, of the unlabelled ones too, does
    not matter.
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
            broken(f"with the {name} in another order, predictions differ by {far:.2g} of the greatest one")


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
