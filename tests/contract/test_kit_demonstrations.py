"""The kit's rules for tasks of demonstrations: those of environments apply, those of shuffled labels do not."""

import attrs
import pytest

from kshot.testing import sample_tasks, suite


@pytest.mark.parametrize("discrete", [False, True])
def test_right_demonstrations_keep_all_rules(discrete):
    """Rules on environments are not skipped; labels that are actions may be read from the inputs."""
    report = suite(tasks=sample_tasks.Demonstrations, options={"discrete": discrete, "shot": 2}).run()
    assert report.ok, report
    outcomes = {finding.rule: finding.outcome for finding in report}
    for rule in ("rollouts-as-specified", "rollouts-are-values", "rollouts-have-own-chance", "environments-travel"):
        assert outcomes[rule] == "passed"
    assert outcomes["wrong-actions-refused"] == "passed"
    assert outcomes["inputs-hide-labels"] == ("skipped" if discrete else "passed")
    assert outcomes["queries-shuffled"] == "skipped"


class Without(sample_tasks.Demonstrations):
    """Demonstrations whose queries have no environment, although the spec says so."""

    def sample(self, split, indices):
        episode = super().sample(split, indices)
        return attrs.evolve(episode, query=attrs.evolve(episode.query, source=None))


def test_demonstrations_without_an_environment_break_a_rule():
    """``spec-is-true`` compares what the spec provides."""
    (failed,) = [f for f in suite(tasks=Without).run() if f.rule == "spec-is-true"]
    assert failed.outcome == "failed"
    assert "query.source: got NoneType" in failed.message
