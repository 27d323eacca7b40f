"""TIM: its objective and both methods by naive second implementations, its limits, and that the queries help."""

import doctest
import math
import sys

import pytest
import torch
import torch.nn.functional as F

import kshot
from kshot import Engine, Support, TaskSpec
from kshot.errors import DataError, OptionError
from kshot.functional import class_means, prototypical_logits
from kshot.testing import sample_tasks
from kshot_tim import TIM

WAY, D = 3, 20


def learner(**options):
    """Return a learner for which the inputs are the embeddings."""
    spec = TaskSpec(kind="classification", input_shape=(D,), way=WAY, shot=2, query=2)
    return TIM(spec, **options).double()


def episodes(B=2, shot=2, query=3, seed=0, spread=1.0):
    """Return embeddings of blobs [B, S, D] and [B, n, D], and the labels of the support and of the queries."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(B, WAY, D, generator=generator, dtype=torch.float64)
    y, yq = (torch.arange(WAY).repeat(k).expand(B, -1) for k in (shot, query))

    def near(labels):
        noise = torch.randn(B, labels.shape[1], D, generator=generator, dtype=torch.float64)
        return means.gather(1, labels.unsqueeze(-1).expand(-1, -1, D)) + spread * noise

    return near(y), near(yq), y, yq


def probabilities(z, W):
    """Compute p_ik, proportional to exp(-15 / 2 ||z_i - w_k||^2), by a loop."""
    rows = [[math.exp(-7.5 * float((x - w).square().sum())) for w in W] for x in z]
    return [[p / sum(row) for p in row] for row in rows]


def test_the_objective_is_that_of_a_naive_loop():
    """0.3 * cross-entropy - (0.9 * H(Y) - 0.2 * H(Y | X)), by sums over examples and classes."""
    z_s, z_q, y, _ = (t[:1] for t in episodes())
    z_s, z_q = F.normalize(z_s, dim=-1), F.normalize(z_q, dim=-1)
    W = class_means(z_s, y, WAY)
    P_s, P_q = probabilities(z_s[0], W[0]), probabilities(z_q[0], W[0])
    ce = -sum(math.log(row[c]) for row, c in zip(P_s, y[0].tolist(), strict=True)) / len(P_s)
    conditional = -sum(p * math.log(p) for row in P_q for p in row) / len(P_q)
    means = [sum(row[k] for row in P_q) / len(P_q) for k in range(WAY)]
    marginal = -sum(p * math.log(p) for p in means)
    mine = learner(cross_entropy=0.3, marginal=0.9, conditional=0.2).objective(W, z_s, z_q, y)
    assert float(mine[0]) == pytest.approx(0.3 * ce - (0.9 * marginal - 0.2 * conditional), rel=1e-10)


def test_without_mutual_information_it_is_a_linear_probe_of_the_same_optimizer():
    """The queries no longer matter, and the prototypes are those that torch's Adam fits to the support alone by the
    cross-entropy of the linear layer with the weights tau w_k and the biases -tau / 2 ||w_k||^2.
    """
    x, x_q, y, _ = episodes()
    options = {"marginal": 0.0, "conditional": 0.0, "lr": 0.02, "steps": 30}
    mine = learner(**options).adapt(Support(x=x, y=y, query_x=x_q, way=WAY))(x_q)
    assert torch.equal(mine, learner(**options).adapt(Support(x=x, y=y, query_x=-x_q[:, :2], way=WAY))(x_q))
    for b in range(2):
        z, z_q = F.normalize(x[b], dim=-1), F.normalize(x_q[b], dim=-1)
        W = torch.stack([z[y[b] == c].mean(0) for c in range(WAY)]).requires_grad_()
        start = W.detach().clone()
        optimizer = torch.optim.Adam([W], lr=0.02)
        for _ in range(30):
            optimizer.zero_grad()
            (0.1 * F.cross_entropy(F.linear(z, 15 * W, -7.5 * W.square().sum(-1)), y[b])).backward()
            optimizer.step()
        assert float((W.detach() - start).abs().max()) > 0.1
        expected = F.linear(z_q, 15 * W, -7.5 * W.square().sum(-1)).softmax(-1)
        assert torch.allclose(mine[b].softmax(-1), expected, atol=1e-9)


def test_gradient_steps_are_those_of_torch_on_the_whole_objective():
    """With the queries' part, by autograd and torch's Adam, for each task alone."""
    x, x_q, y, _ = episodes()
    tim = learner(lr=0.01, steps=20)
    mine = tim.adapt(Support(x=x, y=y, query_x=x_q, way=WAY))(x_q)
    for b in range(2):
        z, z_q = F.normalize(x[b], dim=-1), F.normalize(x_q[b], dim=-1)
        W = torch.stack([z[y[b] == c].mean(0) for c in range(WAY)]).requires_grad_()
        optimizer = torch.optim.Adam([W], lr=0.01)
        for _ in range(20):
            p = (-7.5 * torch.cdist(z_q, W).square()).softmax(-1)
            information = -(p.mean(0) * p.mean(0).log()).sum() + 0.1 * (p * p.log()).sum(-1).mean()
            ce = F.cross_entropy(-7.5 * torch.cdist(z, W).square(), y[b])
            optimizer.zero_grad()
            (0.1 * ce - information).backward()
            optimizer.step()
        expected = (-7.5 * torch.cdist(z_q, W).square()).softmax(-1)
        assert torch.allclose(mine[b].softmax(-1), expected, atol=1e-8)


def test_the_closed_forms_are_those_of_the_paper():
    """Propositions 1 and 2 by loops over examples and classes, in all dimensions, for two steps."""
    x, x_q, y, _ = (t[:1] for t in episodes(shot=1, query=2))
    lam, alpha = 0.1, 0.1
    z, z_q = F.normalize(x[0], dim=-1), F.normalize(x_q[0], dim=-1)
    S, n = len(z), len(z_q)
    W = [z[y[0] == c].mean(0) for c in range(WAY)]
    for _ in range(2):
        P, P_q = probabilities(z, W), probabilities(z_q, W)
        total = [sum(P_q[i][k] ** (1 + alpha) for i in range(n)) for k in range(WAY)]
        q = [[P_q[i][k] ** (1 + alpha) / math.sqrt(total[k]) for k in range(WAY)] for i in range(n)]
        q = [[v / sum(row) for v in row] for row in q]
        new = []
        for k in range(WAY):
            above, below = 0.0, 0.0
            for i in range(S):
                target = float(y[0, i] == k)
                above = above + lam / (1 + alpha) * (target * z[i] + P[i][k] * (W[k] - z[i]))
                below = below + lam / (1 + alpha) * target
            for i in range(n):
                above = above + S / n * (q[i][k] * z_q[i] + P_q[i][k] * (W[k] - z_q[i]))
                below = below + S / n * q[i][k]
            new.append(above / below)
        W = new
    mine = learner(method="adm", steps=2).adapt(Support(x=x, y=y, query_x=x_q, way=WAY))(x_q)
    expected = torch.tensor(probabilities(z_q, W), dtype=torch.float64)
    assert torch.allclose(mine[0].softmax(-1), expected, atol=1e-9)


@pytest.mark.parametrize("method", ["gd", "adm"])
def test_without_steps_it_is_a_prototypical_network_on_vectors_of_length_1(method):
    """The start are the class means, and the factor of squared distances is half the temperature."""
    x, x_q, y, _ = episodes()
    mine = learner(method=method, steps=0, temperature=4.0).adapt(Support(x=x, y=y, query_x=x_q, way=WAY))(x_q)
    means = class_means(F.normalize(x, dim=-1), y, WAY)
    assert torch.allclose(mine, 2 * prototypical_logits(F.normalize(x_q, dim=-1), means), atol=1e-9)


@pytest.mark.parametrize("options", [{"method": "gd", "lr": 1e-3, "steps": 200}, {"method": "adm"}])
def test_the_objective_falls_and_the_queries_help(options):
    """On 100 tasks with one noisy example a class, all 30 queries of a task together are better classified."""
    x, x_q, y, y_q = episodes(B=100, shot=1, query=10, spread=1.5)
    tim = learner(**options)
    support = Support(x=x, y=y, query_x=x_q, way=WAY)
    z, z_q = tim.embed(x), tim.embed(x_q)
    start = class_means(z, y, WAY)
    end = tim.by_gradients(start, z, z_q, y) if tim.method == "gd" else tim.by_closed_forms(start, z, z_q, y)
    assert float((tim.objective(end, z, z_q, y) - tim.objective(start, z, z_q, y)).max()) < 0
    right = [
        (logits.argmax(-1) == y_q).double().mean(1) for logits in (tim.adapt(support)(x_q), tim.logits(z_q, start))
    ]
    gain = right[0] - right[1]
    assert float(gain.mean()) > 4 * float(gain.std()) / 10


def test_queries_are_needed_and_the_result_says_so():
    """A result of a transductive method can't be compared with an inductive one."""
    x, _, y, _ = episodes()
    for query_x in (None, x[:, :0]):
        with pytest.raises(DataError, match="tim: got a support without queries, expected"):
            learner().adapt(Support(x=x, y=y, query_x=query_x, way=WAY))
    tasks = sample_tasks.classification()
    result = Engine(kshot.learner("tim", tasks.spec, steps=3), tasks).evaluate(4)
    assert result.queries == "at_adapt"


@pytest.mark.parametrize(
    "wrong", [{"method": "sgd"}, {"steps": -1}, {"lr": math.nan}, {"temperature": -1.0}, {"marginal": math.inf}]
)
def test_wrong_options_are_refused(wrong):
    """Before anything is computed, with what was expected."""
    with pytest.raises(OptionError, match=r"tim: got .*, expected"):
        learner(**wrong)


def test_the_examples_in_docstrings_run():
    """A wrong example is worse than none."""
    result = doctest.testmod(sys.modules["kshot_tim.tim"])
    assert (result.failed, result.attempted > 0) == (0, True)
