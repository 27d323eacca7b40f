"""Random draws are the same on every platform and in every order, and they are fair."""

import json
import math
import types
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch

from kshot import randomness as r
from kshot.errors import OptionError

GOLDEN = Path(__file__).parents[1] / "golden" / "draws.json"


def splitmix64(state: int) -> int:
    """Compute the reference finaliser in plain integers (Steele, Lea & Flood 2014)."""
    mask = (1 << 64) - 1
    z = state & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def test_mix_is_the_finaliser_of_splitmix64():
    """It equals plain integer arithmetic, and the published first output of splitmix64 seeded with 0."""
    words = np.array([0, 1, 2**63, 2**64 - 1, 0x9E3779B97F4A7C15], np.uint64)
    assert r.mix(words).tolist() == [splitmix64(int(w)) for w in words]
    assert int(r.mix(words)[4]) == 0xE220A8397B1DCDAF
    assert [r.mix_one(int(w)) for w in words] == r.mix(words).tolist()


def test_integer_draws_are_what_they_were_on_every_platform():
    """A change of any draw changes every user's episodes: the golden file may only grow."""
    golden = json.loads(GOLDEN.read_text())
    keys = r.episode_keys(golden["seed"], golden["split"], golden["indices"])
    assert keys.tolist() == golden["keys"]
    assert r.draws(keys, "purpose", 3).tolist() == golden["draws"]
    for case in golden["choose"]:
        assert r.choose(keys, "choice", case["population"], case["count"]).tolist() == case["chosen"]
    ragged = golden["ragged"]
    population = np.array(ragged["population"])
    chosen = r.choose(keys, "choice", population, ragged["count"], least=ragged["least"], most=ragged["most"])
    assert chosen.tolist() == ragged["chosen"]


def test_a_draw_depends_on_its_key_alone():
    """Neighbours, order and the number of draws at once have no effect."""
    keys = r.episode_keys(3, "train", range(50))
    together = r.choose(keys, "classes", 40, 8)
    for i in (0, 17, 49):
        assert r.choose(keys[i : i + 1], "classes", 40, 8)[0].tolist() == together[i].tolist()
    backwards = r.choose(keys[::-1], "classes", 40, 8)
    assert np.array_equal(backwards[::-1], together)


def test_longer_draws_begin_with_the_shorter_ones():
    """A choice that needs more words must not change the words it already had."""
    keys = r.episode_keys(0, "test", range(5))
    assert np.array_equal(r.draws(keys, "x", 9)[:, :4], r.draws(keys, "x", 4))


@pytest.mark.parametrize(("population", "count"), [(5, 5), (20, 16), (4112, 60), (9, 2), (100, 10)])
def test_choices_are_different_and_within_the_population(population: int, count: int):
    """This holds for both methods: the order of random words, and the first different values."""
    chosen = r.choose(r.episode_keys(0, "train", range(300)), "c", population, count)
    assert chosen.shape == (300, count)
    assert chosen.min() >= 0
    assert chosen.max() < population
    assert all(len(set(row)) == count for row in chosen.tolist())


@pytest.mark.parametrize("population", [4, 12])
def test_every_ordered_pair_is_equally_likely(population: int):
    """A chi-squared test over all ordered pairs; 4 are chosen by sorting and 12 by first different values."""
    n = 60_000
    chosen = r.choose(r.episode_keys(1, "train", range(n)), "c", population, 2)
    seen = np.unique(chosen[:, 0] * population + chosen[:, 1], return_counts=True)[1]
    cells = len(list(permutations(range(population), 2)))
    assert len(seen) == cells
    chi2 = float(((seen - n / cells) ** 2 / (n / cells)).sum())
    assert chi2 < (cells - 1) + 6 * math.sqrt(2 * (cells - 1))


def test_choosing_more_than_there_are_is_refused():
    """Otherwise the search for different values would never end."""
    with pytest.raises(ValueError, match="got count 5, expected at most the population, 4"):
        r.choose(r.episode_keys(0, "train", [0]), "c", 4, 5)


def test_normal_draws_have_the_moments_of_a_standard_normal():
    """Mean, variance and fourth moment lie within five standard errors."""
    z = r.normal(r.episode_keys(0, "train", range(2000)), "z", 100).ravel()
    se = 1 / math.sqrt(z.size)
    assert abs(z.mean()) < 5 * se
    assert abs((z**2).mean() - 1) < 5 * math.sqrt(2) * se
    assert abs((z**4).mean() - 3) < 5 * math.sqrt(96) * se


def test_generators_of_one_key_agree_and_of_other_purposes_differ():
    """Draws in a learner are a function of the episode's key and the purpose."""
    key = r.as_tensor(r.episode_keys(0, "train", [7]))[0]
    a, b, c = (torch.rand(4, generator=r.generator(key, p)) for p in ("dropout", "dropout", "noise"))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_seeded_leaves_the_global_generator_as_it_was():
    """Inside, the parts determine the draws; outside, the state does not change."""
    before = torch.get_rng_state()
    with r.seeded("a", 1):
        first = torch.rand(3)
    with r.seeded("a", 1):
        assert torch.equal(torch.rand(3), first)
    with r.seeded("a", 2):
        assert not torch.equal(torch.rand(3), first)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("index", [None, 1])
def test_seeded_seeds_the_generator_of_its_device_too(index: int | None, monkeypatch: pytest.MonkeyPatch):
    """An accelerator draws dropout from a generator of its own; those of other devices are left alone."""
    own = [torch.Generator().manual_seed(5) for _ in range(2)]
    module = types.SimpleNamespace(default_generators=own, current_device=lambda: 1)
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    before = [each.get_state() for each in own]
    drawn = []
    for seed in (1, 1, 2):
        with r.seeded("a", seed, device=torch.device("cuda", index)):
            drawn.append(torch.rand(3, generator=own[1]))
            assert torch.equal(own[0].get_state(), before[0])
        assert torch.equal(own[1].get_state(), before[1])
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_whole_numbers_of_numpy_seed_like_pythons():
    """Seeds come from arrays, and a fixed-width integer would overflow in the arithmetic of seeds."""
    assert np.array_equal(r.episode_keys(np.int64(2**62), "train", [0]), r.episode_keys(2**62, "train", [0]))
    with r.seeded("a", np.int64(-1)):
        first = torch.rand(3)
    with r.seeded("a", -1):
        assert torch.equal(torch.rand(3), first)


@pytest.mark.parametrize("seed", [3, np.int64(3), np.uint8(3), True])
def test_a_seed_is_a_whole_number_of_any_type(seed: object):
    """The result is an int, which JSON can store."""
    assert type(r.as_seed(seed)) is int


@pytest.mark.parametrize("seed", [10**20, -(2**63) - 1, 1.5, "1", None])
def test_a_seed_that_torch_can_not_take_is_refused_by_name(seed: object):
    """torch and numpy would raise errors that do not name the option."""
    with pytest.raises(OptionError, match=r"mine: got seed .* expected a whole number of at most 64 bits"):
        r.as_seed(seed, "mine")


@pytest.mark.parametrize("most", [20, 700, 3000, 100_000])
def test_a_large_population_changes_no_draw_and_costs_the_others_nothing(most):
    """The definition: the order of random words, of which each key has as many as the largest population."""
    keys = r.episode_keys(3, "train", range(60))
    population = np.where(np.arange(60) % 10 == 0, most, 16 + np.arange(60) % 5)
    words = r.draws(keys, "rows", most)
    words[np.arange(most) >= population[:, None]] = (1 << 64) - 1
    expected = words.argsort(axis=1, kind="stable")[:, :16]
    chosen = r.choose(keys, "rows", population, 16, least=16, most=most)
    assert np.array_equal(chosen, expected)


def test_words_are_drawn_for_a_key_s_own_population(monkeypatch):
    """One class of a million examples made every draw of another class slow."""
    drawn = []
    original = r.draws
    monkeypatch.setattr(r, "draws", lambda k, p, n: drawn.append(len(k) * n) or original(k, p, n))
    keys = r.episode_keys(0, "train", range(50))
    r.choose(keys, "rows", np.full(50, 20), 16, least=16, most=1_000_000)
    assert sum(drawn) == 50 * 20


@pytest.mark.parametrize("seed", [-1, -(2**63), 2**64 - 1])
def test_a_seed_may_be_any_number_of_64_bits(seed: int):
    """Also a negative one, as torch takes them."""
    assert r.as_seed(seed) == seed
    assert r.episode_keys(seed, "train", [0, 1]).dtype == np.uint64
