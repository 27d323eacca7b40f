"""``reach2d``: the motion is that of a naive loop, and the target can be read from demonstrations alone."""

import math

import pytest
import torch

import kshot
from kshot.errors import DataError, OptionError, TrainingError
from kshot_reach2d import Environment, Reach2D
from kshot_reach2d.environment import MOVES, NEAR, STEP
from kshot_reach2d.nets import Looking, looking


def scripted(actions: torch.Tensor, axis: int):
    """Make a policy that returns actions step by step, whatever it observes."""
    steps = iter(actions.unbind(axis))
    return lambda seen: next(steps)


@pytest.mark.parametrize("discrete", [False, True])
def test_the_motion_is_that_of_a_naive_loop(discrete):
    """Observations, rewards and scores of each trajectory are recomputed in plain Python."""
    actions = "discrete" if discrete else "continuous"
    source = Reach2D(trajectories=4, horizon=15, actions=actions, objects=4).sample("val", [0, 3]).query.source
    generator = torch.Generator().manual_seed(0)
    if discrete:
        taken = torch.randint(9, (2, 4, 15), generator=generator)
    else:
        taken = 1.5 * torch.randn(2, 4, 15, 2, generator=generator)
    scene = source.scene()
    # The first trajectory of each task goes to its target, and the second to a distractor.
    for i, object_ in ((0, scene.target[:, 0]), (1, (scene.target[:, 1] + 1) % 4)):
        way = scene.objects[:, i][torch.arange(2), object_] - scene.start[:, i]
        for t in range(15):
            if discrete:
                taken[:, i, t] = (way[:, None] - STEP * MOVES).norm(dim=-1).argmin(-1)
                way = way - STEP * MOVES[taken[:, i, t]]
            else:
                taken[:, i, t] = (way / STEP).clamp(-1, 1)
                way = way - STEP * taken[:, i, t]
    played = source.rollout(scripted(taken, -1 if discrete else -2))
    assert torch.equal(played.actions, taken)
    for b in range(2):
        for i in range(4):
            x, y = scene.start[b, i].tolist()
            objects, colours = scene.objects[b, i].tolist(), scene.colours[b, i].tolist()
            textures = scene.textures[b, i].tolist()
            looks = [(*c, *texture) for c, texture in zip(colours, textures, strict=True)]
            target = int(scene.target[b, i])
            for t in range(15):
                seen = [v for (ox, oy), look in zip(objects, looks, strict=True) for v in (ox - x, oy - y, *look)]
                assert played.observations[b, i, t].tolist() == pytest.approx(seen, abs=1e-5)
                a = taken[b, i, t]
                if discrete:
                    dx, dy = divmod(int(a), 3)
                    dx, dy = dx - 1, dy - 1
                else:
                    dx, dy = (max(-1.0, min(1.0, float(v))) for v in a)
                x, y = x + 0.1 * dx, y + 0.1 * dy
                away = [math.hypot(ox - x, oy - y) for ox, oy in objects]
                assert float(played.rewards[b, i, t]) == pytest.approx(-away[target], abs=1e-5)
            assert bool(played.scores["success"][b, i]) == (away[target] < 0.1)
            near = min(away[:target] + away[target + 1 :]) < 0.1
            assert bool(played.scores["distracted"][b, i]) == (near and not away[target] < 0.1)
    assert played.scores["success"][:, 0].all()
    assert played.scores["distracted"][:, 1].all()


@pytest.mark.parametrize("actions", ["continuous", "discrete"])
def test_the_expert_reaches_every_target_and_stays(actions):
    """Demonstrations end at the target, so their last action is not to move."""
    tasks = Reach2D(actions=actions)
    e = tasks.sample("train", range(100))
    played = e.query.source.rollout(e.query.source.expert())
    assert played.scores["success"].all()
    if actions == "continuous":  # to pass the target is no success
        expert, steps = e.query.source.expert(), iter(range(20))
        passing = e.query.source.rollout(lambda seen: expert(seen) if next(steps) < 15 else torch.ones(100, 10, 2))
        assert not passing.scores["success"].any()
        assert passing.rewards.amax(-1).min() > -NEAR
    last = e.support.y[:, -1]
    assert (last == 4).all() if actions == "discrete" else last.abs().max() < 1e-4
    first = e.support.y[:, 0]
    assert (first != 4).all() if actions == "discrete" else torch.allclose(first.norm(dim=-1), torch.ones(100))


def target_of(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the object [..] that the first steps ``x`` [.., 18] go to, by its direction."""
    ways = x.unflatten(-1, (3, 6))[..., :2]
    return (torch.nn.functional.normalize(ways, dim=-1) * y[..., None, :]).sum(-1).argmax(-1)


def test_a_demonstration_shows_the_colour_of_the_target():
    """In support, query and rollout the target has the hue of the task; distractors differ by 90 degrees or more."""
    e = Reach2D(trajectories=6).sample("test", range(200))
    hue = torch.from_numpy(e.origin.fields["hue"])
    expected = torch.stack([hue.cos(), hue.sin()], -1)
    for part in (e.support, e.query):
        x, y = part.x[:, 0], part.y[:, 0]
        colours = x.unflatten(-1, (3, 6))[..., 2:4]
        shown = colours[torch.arange(200), target_of(x, y)]
        assert torch.allclose(shown, expected, atol=1e-5)
    scene = e.query.source.scene()
    between = (scene.colours[..., None, :] * scene.colours[..., None, :, :]).sum(-1).clamp(-1, 1).arccos()
    apart = between[..., ~torch.eye(3, dtype=torch.bool)]
    assert apart.min() >= math.pi / 2 - 1e-4
    assert apart.min() < math.pi / 2 + 0.05
    index = scene.target[..., None, None].expand(200, 6, 1, 2)
    assert torch.allclose(scene.colours.gather(2, index)[:, :, 0], expected[:, None].expand(200, 6, 2), atol=1e-5)


def test_nothing_but_the_colour_tells_the_target():
    """The target's number in the observation is uniform, and so are hues; places differ between the demonstrations."""
    e = Reach2D(trajectories=10).sample("train", range(400))
    scene = e.query.source.scene()
    target = scene.target
    counts = torch.bincount(target.flatten(), minlength=3)
    assert (counts - 4000 / 3).abs().max() < 4 * math.sqrt(4000 * 2 / 9)
    hue = torch.from_numpy(e.origin.fields["hue"])
    assert hue.cos().mean().abs() < 4 * math.sqrt(0.5 / 400)
    assert hue.sin().mean().abs() < 4 * math.sqrt(0.5 / 400)
    # Textures are uniform, for targets as for distractors, and those of two trajectories are not related.
    for number in range(3):
        textures = scene.textures[torch.arange(400)[:, None], torch.arange(10), (target + number) % 3]
        assert textures.mean((0, 1)).abs().max() < 4 * math.sqrt(0.5 / 4000)
        assert (textures[:, 0] * textures[:, 1]).sum(-1).mean().abs() < 4 * math.sqrt(0.5 / 400)
    assert torch.allclose(scene.textures.norm(dim=-1), torch.ones(400, 10, 3))
    assert (scene.textures - scene.colours).abs().amax((0, 1, 2)).min() > 1
    places = [part.x[:, 0].unflatten(-1, (3, 6))[..., :2] for part in (e.support, e.query)]
    assert (places[0] - places[1]).abs().amax((1, 2)).min() > 0.01
    first = e.query.source.scene()
    played = first.observed(first.start)[:, 0]
    assert (played - e.query.x[:, 0]).abs().amax(1).min() > 0.01  # nor are they those of the rollout
    apart = first.objects
    distance = (apart[..., None, :] - apart[..., None, :, :]).norm(dim=-1)[..., ~torch.eye(3, dtype=torch.bool)]
    assert distance.min() > 2 * NEAR


def test_no_two_splits_share_the_hue_of_a_target():
    """In each quarter of the circle training has 60 degrees, then validation and test 15 each; all are used."""
    for split, (low, high) in {"train": (0, 60), "val": (60, 75), "test": (75, 90)}.items():
        hue = Reach2D().sample(split, range(200)).origin.fields["hue"] * 180 / math.pi
        assert set(hue // 90) == {0, 1, 2, 3}
        place = hue % 90
        assert low - 1e-4 <= place.min() < low + 3 < high - 3 < place.max() <= high + 1e-4


def test_a_policy_without_the_task_does_not_succeed():
    """Going to the first object reaches one target in three, and not to move reaches none."""
    source = Reach2D(trajectories=20).sample("test", range(100)).query.source
    first = source.rollout(lambda seen: (seen[..., :2] / STEP).clamp(-1, 1)).scores
    assert float(first["success"].float().mean()) == pytest.approx(1 / 3, abs=4 * math.sqrt(2 / 9 / 2000))
    assert (first["success"] | first["distracted"]).all()
    still = source.rollout(lambda seen: torch.zeros_like(seen[..., :2]))
    assert not still.scores["success"].any()


def test_observations_alone_are_unlabelled_examples():
    """The support then has no actions, and its observations are the same."""
    full, e = (Reach2D(2, support=s).sample("test", [1, 5]) for s in ("actions", "observations"))
    assert e.support.x.shape == (2, 0, 18)
    assert e.support.y.shape == (2, 0, 2)
    assert torch.equal(e.support.unlabelled, full.support.x)
    assert torch.equal(e.query.y, full.query.y)
    assert Reach2D(support="observations").spec.provides == {"environment", "unlabelled"}


def test_options_change_numbers_and_shapes():
    """Examples are demonstrations times steps; ``trajectories`` is that of the rollout."""
    t = kshot.tasks("reach2d", demonstrations=2, query=3, trajectories=4, objects=5, horizon=6)
    e = t.sample("train", [0])
    assert (t.spec.shot, t.spec.query, t.spec.input_shape) == (12, 18, (30,))
    assert e.support.x.shape == (1, 12, 30)
    assert e.query.y.shape == (1, 18, 2)
    assert e.query.source.rollout(lambda seen: seen[..., :2]).rewards.shape == (1, 4, 6)


def test_bad_options_and_policies_are_refused():
    """The error says what was given and what was expected."""
    with pytest.raises(OptionError, match="got query 0, horizon -1, expected at least 1"):
        Reach2D(query=0, horizon=-1)
    with pytest.raises(OptionError, match="got objects 9, expected 2 to 8"):
        Reach2D(objects=9)
    with pytest.raises(OptionError, match="got actions 'both', expected continuous or discrete"):
        Reach2D(actions="both")
    with pytest.raises(DataError, match="unknown split 'dev'"):
        Reach2D().sample("dev", [0])
    source = Reach2D().sample("test", [0]).query.source
    with pytest.raises(TrainingError, match=r"expected real numbers of shape \[1, 10, 2\]"):
        source.rollout(lambda seen: seen)
    with pytest.raises(TrainingError, match="NaN or infinite action in step 0"):
        source.rollout(lambda seen: seen[..., :2] * torch.nan)


def test_the_network_attends_to_objects_in_any_order():
    """Its actions do not depend on the order of the objects, and at first it attends to all alike."""
    torch.manual_seed(0)
    net = looking(Reach2D(objects=4).spec)
    x = torch.randn(5, 24)
    shuffled = x.unflatten(-1, (4, 6))[:, [2, 0, 3, 1]].flatten(1)
    with torch.no_grad():
        mean = x.unflatten(-1, (4, 6))[..., :2].mean(1)
        direction = mean / (mean.square().sum(-1, keepdim=True) + 0.01).sqrt()
        assert torch.allclose(net(x), direction, atol=1e-6)
        net.score[-1].weight.normal_()
        assert torch.allclose(net(x), net(shuffled), atol=1e-6)
        assert not torch.allclose(net(x), net.act(direction), atol=1e-2)
    assert looking(Reach2D(actions="discrete").spec)(torch.zeros(2, 18)).shape == (2, 9)
    assert isinstance(net, Looking)


def test_one_task_plays_as_in_a_meta_batch():
    """An environment of one task has no axis B."""
    e = Reach2D(trajectories=2).sample("test", range(3))
    together = e.query.source.rollout(lambda seen: seen[..., :2])
    alone = Environment(e.query.source.hue[1], e.query.source.key[1], 2, 20, 3).rollout(lambda seen: seen[..., :2])
    assert torch.equal(together.observations[1], alone.observations)


def test_a_picture_shows_the_paths_and_the_target():
    """Paths, objects, hues and targets are those of the scene, from the start of each trajectory."""
    source = Reach2D(trajectories=4, objects=4).sample("test", range(3)).query.source
    scene, played = source.scene(), source.rollout(source.expert())
    above = source.from_above(played.observations)
    assert torch.allclose(above["objects"], scene.objects - scene.start[:, :, None], atol=1e-6)
    assert torch.equal(above["targets"], scene.target)
    assert torch.allclose(above["hues"].cos(), scene.colours[..., 0], atol=1e-5)
    assert torch.allclose(above["hues"].sin(), scene.colours[..., 1], atol=1e-5)
    moved = STEP * played.actions.cumsum(-2)
    assert torch.equal(above["paths"][:, :, 0], torch.zeros(3, 4, 2))
    assert torch.allclose(above["paths"][:, :, 1:], moved[:, :, :-1], atol=1e-5)
