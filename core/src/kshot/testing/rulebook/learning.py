"""Rules for learners: what they predict, and what they predict it from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kshot.spec import bounds
from kshot.testing.cases import Case
from kshot.testing.compare import gap
from kshot.testing.outer_steps import clear, gradient, grads, restore, state_of
from kshot.testing.rulebook.learner_rule import TABLES, learner_rule, only
from kshot.testing.rulebook.rule import Rule, add, broken
from kshot.testing.short_training import EPISODES, Judgement, hidden_chance, judge, short_training
from kshot.testing.subjects import LearnerSubject


def _never_probabilities(answer: Tensor) -> bool:
    """Say whether some number is outside of [0, 1]."""
    return bool((answer < -1e-4).any() or (answer > 1 + 1e-4).any())


@learner_rule(only("classification", "sequence"))
def logits_are_no_probabilities(case: Case) -> None:
    """Predictions of classes and bits are logits. They are no probabilities: not all are in [0, 1] with a sum of 1 over
    the classes; those of bits are not all in [0, 1] for any size of the parameters.
    """
    learner = case.warmed()
    answer = case.predict(learner, case.episode()).double()
    if _never_probabilities(answer):
        return
    if case.kind == "classification" or not case.episode().query.y.is_floating_point():
        if bool((answer.sum(-1) - 1).abs().max() < 1e-3):
            broken(
                "got numbers in [0, 1] with the sum 1 for each query, expected logits; return what softmax is applied "
                "to, or the logarithm of the probabilities"
            )
        return
    state = state_of(learner)
    parameters = [n for n, p in learner.named_parameters() if p.is_floating_point()]
    for factor in (-20.0, 20.0):
        restore(learner, {**state, **{n: factor * state[n] for n in parameters}})
        if _never_probabilities(case.predict(learner, case.episode()).double()):
            return
    broken(
        "got numbers in [0, 1] for all bits, also with parameters that are 20 times as large, expected logits; return "
        "what sigmoid is applied to"
    )


def _discrete(case: Case) -> str | None:
    return "its predictions are actions of a few values" if case.kind == "control" and case.tasks.spec.way else None


@learner_rule(_discrete)
def training_changes_predictions(case: Case) -> None:
    """If ``meta_gradient`` gives a gradient that is not 0, three outer steps change the predictions: ``adapt`` uses
    what is trained.
    """
    learner = case.build()
    gradient(learner, case.episode(split=case.training))
    slopes = grads(learner)
    clear(learner)
    if not any(bool((g != 0).any()) for g in slopes.values()):
        return
    before = case.predict(case.build(), case.episode())
    after = case.predict(case.trained(), case.episode())
    if bool(torch.isfinite(after).all()) and before.shape == after.shape and gap(before, after) == 0:
        broken(
            "got the same predictions, bit for bit, before and after three outer steps that changed the parameters, "
            "expected others; let adapt use the parameters that meta_gradient trains"
        )


# --- After a short training -----------------------------------------------------------------------


def _no_table(subject: LearnerSubject) -> str | None:
    if subject.given:
        return "it is tried on given tasks, of which it is not known how easy they are"
    if any("sequence" in case.needs.kinds for case in subject.cases):
        return "it also learns sequences, so it reads a support step by step, which takes more than a short training"
    if not _tables(subject):
        kinds = dict.fromkeys(case.kind for case in subject.cases)
        return f"it learns {', '.join(kinds)}, and is tried on no table of examples of one shape"
    return None


def _tables(subject: LearnerSubject) -> list[Case]:
    """Return the cases whose episodes are tables of labelled examples of one shape."""
    return [c for c in subject.cases if c.kind in TABLES and not c.tasks.spec.varies and bounds(c.tasks.spec.shot)[0]]


def _trained(subject: LearnerSubject, case: Case) -> tuple[Any, Judgement]:
    """Train a learner shortly, once for all rules; the state of the learner that is returned is restored."""
    known = subject.__dict__.setdefault("_shortly_trained", {})
    if case.name not in known:
        learner, judgement = short_training(case)
        known[case.name] = learner, state_of(learner), judgement
    learner, state, judgement = known[case.name]
    restore(learner, state)
    return learner, judgement


def learns_from_the_support(subject: LearnerSubject) -> None:
    """After a short training on easy tasks, a learner predicts better than without the support: classes of separable
    blobs better than chance, and points of lines better than with the support of another line, by at least four
    standard errors over 100 episodes. Breaking this rule gives a warning only, because a method may need more training.
    """
    for case in _tables(subject):
        _, judged = _trained(subject, case)
        if not judged.convincing:
            what = "an accuracy above chance by" if case.kind == "classification" else "a log ratio of errors of"
            broken(
                f"on {case.name}: got {what} {judged.margin:.3f} ({judged.errors:.1f} standard errors) on {EPISODES} "
                "episodes after a short training on separable blobs or lines, expected at least 4 standard errors; "
                "check the sign of logits and the order of classes, and that adapt uses the support"
            )


def chance_of_labels(subject: LearnerSubject) -> None:
    """A learner of classification that predicts better than chance still does so if classes are numbered differently,
    if support and queries are in another order, and if the episodes have other keys: it does not guess labels from
    these.
    """
    for case in _tables(subject):
        if case.kind != "classification":
            continue
        learner, judged = _trained(subject, case)
        if not judged.convincing:
            continue  # another rule warns of this
        hidden = judge(case, learner, hidden_chance)
        if hidden.errors < 2 and hidden.margin < 0.25 * judged.margin:
            broken(
                f"on {case.name}: got an accuracy above chance by {judged.margin:.3f}, but by {hidden.margin:.3f} with "
                "other numbers of classes, another order of examples and other keys, expected about the same; compare "
                "queries with the examples of each label in support.y"
            )


def _no_classes(subject: LearnerSubject) -> str | None:
    reason = _no_table(subject)
    if reason is None and not any(case.kind == "classification" for case in _tables(subject)):
        return "it learns no classification"
    return reason


add(Rule("learns-from-the-support", "learners", learns_from_the_support, _no_table, advice=True))
add(Rule("chance-of-labels", "learners", chance_of_labels, _no_classes))
