"""The registry: registering, nesting, how components were built, and what discovery tolerates.

Tests that need a real installed distribution are in ``tests/contract``.
"""

from __future__ import annotations

import gc
import importlib
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

import kshot.registry
from kshot._distributions import problems
from kshot.errors import DataError, OptionError, PluginError, UnknownPluginError
from kshot.protocols import Learner, LearnerFactory, MemoryFactory, TaskDistribution
from kshot.registry import Plugin, Registry, modules
from kshot.registry.building import overlay
from kshot.registry.ledger import Built, recall
from kshot.registry.options import Raw
from kshot.registry.surroundings import kept
from kshot.spec import Needs, TaskSpec

SPEC = TaskSpec("classification", (1, 4, 4), way=5, shot=1, query=1)


class Plain(torch.nn.Module):
    """A learner with one random parameter.

    Args:
        lr: the rate.
    """

    needs = Needs(kinds=("classification", "regression"))

    def __init__(self, spec: TaskSpec, *, lr: float = 0.1, sizes: tuple[int, ...] = (1,)) -> None:
        super().__init__()
        self.spec, self.lr, self.sizes = spec, lr, sizes
        self.weight = torch.nn.Parameter(torch.randn(2))

    def meta_gradient(self, episodes: Any) -> Any:
        return {}

    def adapt(self, support: Any) -> Any:
        return lambda x: x


class Wrapper(Plain):
    """A learner that wraps a learner."""

    def __init__(self, spec: TaskSpec, *, inner: Learner, encoder: Any = None) -> None:
        super().__init__(spec)
        self.inner, self.encoder = inner, encoder


class Containing(Plain):
    """A learner that contains a learner of tasks of another spec."""

    def __init__(self, spec: TaskSpec, *, meta: LearnerFactory) -> None:
        super().__init__(spec)
        self.weight = torch.nn.Parameter(torch.rand(2))  # moves the random state before ``meta`` is built
        self.meta = meta(attrs.evolve(spec, input_shape=(7,)))


class Remembering(Plain):
    """A learner with a memory that has a default."""

    def __init__(self, spec: TaskSpec, *, memory: MemoryFactory | str = "slots") -> None:
        super().__init__(spec)
        assert not isinstance(memory, str)
        self.memory = memory(8, 4, 1)


class Slots(torch.nn.Module):
    """A memory."""

    interface_size = read_size = 1

    def __init__(self, slots: int, width: int, reads: int, *, sharp: bool = False) -> None:
        super().__init__()
        self.made = slots, width, reads, sharp

    def initial_state(self, batch_size: int) -> Any: ...

    def step(self, interface: Any, state: Any) -> Any: ...


class Few:
    """Tasks whose spec is set by ``__init__``."""

    def __init__(self, *, way: int = 5, root: Path | None = None) -> None:
        self.spec, self.way, self.root = SPEC, way, root

    def sample(self, split: str, indices: Any) -> Any: ...


class View:
    """Tasks that wrap tasks."""

    def __init__(self, *, of: TaskDistribution) -> None:
        self.of, self.spec = of, of.spec

    def sample(self, split: str, indices: Any) -> Any: ...


@pytest.fixture
def registry() -> Registry:
    made = Registry()
    for factory in (Plain, Wrapper, Containing, Remembering, Slots, Few, View):
        made.register(factory)
    return made


def names(registry: Registry, group: str) -> list[str]:
    return [p.name for p in registry.plugins() if p.group == group and not p.distribution]


# -------------------- registering


def test_group_is_told_from_the_members(registry: Registry) -> None:
    """``kshot.register`` needs no group, also if only instances have a spec."""
    assert names(registry, "learners") == ["containing", "plain", "remembering", "wrapper"]
    assert names(registry, "memories") == ["slots"]
    assert names(registry, "tasks") == ["few", "view"]


def test_backend_is_told_from_its_members() -> None:
    """A backend is recognised by ``place`` and ``autocast``."""

    class MyGPU2Backend:
        def place(self, x: Any) -> Any: ...

        def autocast(self) -> Any: ...

    made = Registry()
    assert made.register(MyGPU2Backend) is MyGPU2Backend
    assert names(made, "backends") == ["my-gpu2-backend"]


def test_registering_is_a_decorator_with_and_without_arguments() -> None:
    """Both forms return what they decorate."""
    made = Registry()

    @made.register
    class OneTask(Few):
        """One task."""

    @made.register(name="two", group="tasks")
    def whatever() -> Few:
        return Few(way=2)

    assert names(made, "tasks") == ["one-task", "two"]
    assert made.find("one-task").summary == "One task."
    tasks: Any = made.tasks("two")
    assert tasks.way == 2
    assert whatever().way == 2
    assert isinstance(OneTask(), Few)


def test_group_that_can_not_be_told_is_asked_for() -> None:
    """The group of a function, or of a class of no protocol, is not guessed."""
    made = Registry()
    for factory in (lambda: None, dict):
        with pytest.raises(OptionError, match="set group= to one of 'learners', 'tasks'"):
            made.register(factory)
    with pytest.raises(OptionError, match=r"got the group 'learner', expected one of .*; did you mean 'learners'"):
        made.register(Plain, group="learner")


def test_impossible_name_is_refused() -> None:
    """A dot or an equals sign would break nested options on the command line."""
    made = Registry()
    for name in ("a.b", "a=b", "A", "", "a_b"):
        with pytest.raises(OptionError, match="expected lower-case letters, digits and hyphens"):
            made.register(Plain, name=name)


def test_taken_name_is_refused(registry: Registry) -> None:
    """A name is taken if another object of any group, or a built-in, has it."""
    with pytest.raises(PluginError, match=r"the name 'plain' is taken by learner 'plain' \(registered from .*:Plain\)"):
        registry.register(Few, name="plain")
    with pytest.raises(PluginError, match=r"'cpu' is taken by backend 'cpu' \(kshot"):
        registry.register(Few, name="cpu")
    assert registry.find("plain").group == "learners"


def test_registering_the_same_class_again_replaces_it() -> None:
    """A notebook cell that is run again defines its class again."""
    made = Registry()
    cell = "class Mine(Few):\n    version = {}\nmade.register(Mine)"
    for version in (1, 2):
        exec(cell.format(version), {"made": made, "Few": Few, "__name__": "notebook"})
    assert names(made, "tasks") == ["mine"]
    tasks: Any = made.tasks("mine")
    assert tasks.version == 2


def test_registry_of_the_process_is_behind_the_module() -> None:
    """``kshot.register`` and ``kshot.learner`` use the same registry."""
    assert kshot.registry.register.__self__ is kshot.registry.default  # type: ignore[attr-defined]
    assert kshot.registry.learner.__self__ is kshot.registry.default  # type: ignore[attr-defined]
    assert {p.name for p in kshot.registry.plugins() if p.builtin} == {"cpu", "progress", "metrics", "embedded", "run"}


# -------------------- nesting


@pytest.mark.parametrize(
    ("inner", "lr"),
    [
        ("plain", 0.1),
        (Raw("plain"), 0.1),
        ({"name": "plain", "lr": 0.5}, 0.5),
        ({"": Raw("plain"), "lr": Raw("0.5")}, 0.5),
    ],
)
def test_nested_learner_is_built_by_name(registry: Registry, inner: Any, lr: float) -> None:
    """It can be given by code, TOML tables and flags, and gets the spec of the outer one."""
    made: Any = registry.learner("wrapper", SPEC, inner=inner)
    assert isinstance(made.inner, Plain)
    assert made.inner.lr == lr
    assert made.inner.spec is SPEC


def test_nested_learner_may_be_built_already(registry: Registry) -> None:
    """It is passed on unchanged, and how it was built is recorded if that is known."""
    inner = registry.learner("plain", SPEC, lr=0.3)
    made: Any = registry.learner("wrapper", SPEC, inner=inner)
    assert made.inner is inner
    how = registry.built(made)
    assert how is not None
    assert how.plain() == {"name": "wrapper", "inner": {"name": "plain", "lr": 0.3}}
    assert how.portable
    unknown = registry.built(registry.learner("wrapper", SPEC, inner=Plain(SPEC)))
    assert unknown is not None
    assert unknown.options == {"inner": "<Plain>"}
    assert not unknown.portable


def test_nested_tasks_are_built_by_name(registry: Registry) -> None:
    """A view names the tasks that it wraps."""
    made: Any = registry.tasks("view", of={"name": "few", "way": 3, "root": "a/b"})
    assert made.of.way == 3
    how = registry.built(made)
    assert how is not None
    assert how.plain() == {"name": "view", "of": {"name": "few", "way": 3, "root": "a/b"}}
    assert made.of.root == Path("a/b")


def test_a_path_to_what_is_there_is_recorded_as_found_from_any_folder(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run may be resumed, and may predict, in another folder than the one in which it began."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    for root, recorded in (("here", str(tmp_path / "here")), ("not here", "not here"), ("/", "/")):
        made = registry.tasks("view", of={"name": "few", "root": root})
        how = registry.built(made)
        assert how is not None
        assert how.plain()["of"]["root"] == recorded


def test_memory_sizes_among_the_options_win_over_the_learners_choice(registry: Registry) -> None:
    """``--learner.memory.slots=128`` has precedence; without it, the learner's sizes are used."""
    made: Any = registry.learner("remembering", SPEC)
    assert made.memory.made == (8, 4, 1, False)
    made = registry.learner("remembering", SPEC, memory={"name": "slots", "slots": 128, "sharp": True})
    assert made.memory.made == (128, 4, 1, True)
    made = registry.learner("remembering", SPEC, memory={"sharp": True})  # of the default memory
    assert made.memory.made == (8, 4, 1, True)
    factory = registry.memory("slots", width=9)
    assert factory(1, 2, 3, sharp=True).made == (1, 9, 3, True)
    assert registry.memory("slots", sharp=False)(1, 2, 3, sharp=True).made == (1, 2, 3, False)
    with pytest.raises(OptionError, match=r"memory 'slots' .*: slot: unknown option; did you mean 'slots'\?"):
        registry.memory("slots", slot=3)


def test_error_of_a_nested_component_says_where_it_is_nested(registry: Registry) -> None:
    """Otherwise the user would look for the option in the wrong plugin."""
    message = r"^option inner of learner 'wrapper' .*: learner 'plain' .*: lr: got 'x' \(str\), expected float"
    with pytest.raises(OptionError, match=message):
        registry.learner("wrapper", SPEC, inner={"name": "plain", "lr": "x"})
    with pytest.raises(
        UnknownPluginError, match=r"^option inner of .*: 'few' is tasks, not a learner: kshot.tasks\('few'\)"
    ):
        registry.learner("wrapper", SPEC, inner="few")
    with pytest.raises(OptionError, match=r"option inner: got {'lr': 1}, expected a plugin's name and its options"):
        registry.learner("wrapper", SPEC, inner={"lr": 1})
    with pytest.raises(OptionError, match=r"inner: got 5 \(int\), expected Learner"):
        registry.learner("wrapper", SPEC, inner=5)
    with pytest.raises(OptionError, match="inner: got nothing, expected Learner"):
        registry.learner("wrapper", SPEC)


# -------------------- remembering


def test_options_are_remembered_as_plain_values(registry: Registry) -> None:
    """A run's configuration is written from them, in the types to which building converted them."""
    how = registry.built(registry.learner("plain", SPEC, lr=1, sizes=(1, 2), seed=4))
    assert how is not None
    assert (how.group, how.name, how.options, how.seed) == (
        "learners",
        "plain",
        {"lr": 1.0, "sizes": [1, 2]},
        4,
    )
    assert registry.built(Plain(SPEC)) is None


def test_memory_of_what_was_built_ends_with_it(registry: Registry) -> None:
    """The registry keeps no component alive, and a later object does not inherit its record."""
    made = registry.learner("plain", SPEC)
    assert len(registry._built) == 1
    del made
    gc.collect()
    assert registry._built == {}


def test_component_without_weak_references_is_remembered_too() -> None:
    """Slots without ``__weakref__`` are allowed."""

    @attrs.frozen(weakref_slot=False)
    class Slotted:
        spec: Any = None

        def sample(self, split: str, indices: Any) -> Any: ...

    made = Registry()
    made.register(Slotted, name="slotted")
    tasks = made.tasks("slotted")
    how = made.built(tasks)
    assert how is not None
    assert how.name == "slotted"


def test_rebuilding_lays_changed_options_over_the_old_ones(registry: Registry) -> None:
    """Evaluation may use other options than training; the seed remains, and nested tables are merged."""
    first: Any = registry.learner("wrapper", SPEC, inner={"name": "plain", "lr": 0.5, "sizes": [3]}, seed=9)
    other: Any = registry.rebuild(first, SPEC, inner={"lr": 0.7})
    assert (other.inner.lr, other.inner.sizes) == (0.7, (3,))
    assert other.inner is not first.inner
    assert torch.equal(other.weight, first.weight)
    assert torch.equal(other.inner.weight, first.inner.weight)
    with pytest.raises(OptionError, match="lrr: unknown option"):
        registry.rebuild(first, SPEC, inner={"lrr": 0.7})
    with pytest.raises(OptionError, match="got a Plain that was not built by name"):
        registry.rebuild(Plain(SPEC), SPEC)


def test_a_learner_is_initialised_from_its_seed_and_ready_to_be_used(registry: Registry) -> None:
    """Its parameters depend on nothing else, and torch's random state is as it was."""
    before = torch.get_rng_state()
    weights = {seed: registry.learner("plain", SPEC, seed=seed).weight.tolist() for seed in (0, 1, 2)}  # type: ignore[attr-defined]
    assert len(set(map(tuple, weights.values()))) == 3
    assert registry.learner("plain", SPEC, seed=1).weight.tolist() == weights[1]  # type: ignore[attr-defined]
    assert registry.learner("plain", SPEC).weight.tolist() == weights[0]  # type: ignore[attr-defined]
    inner: Any = registry.learner("wrapper", SPEC, inner="plain", seed=1)
    assert inner.inner.weight.tolist() == weights[1]
    assert not any(module.training for module in inner.modules())
    assert torch.equal(torch.get_rng_state(), before)


def test_options_of_one_plugin_are_not_given_to_another(registry: Registry) -> None:
    """A table with another name starts from nothing."""
    first: Any = registry.learner("wrapper", SPEC, inner={"name": "plain", "lr": 0.5, "sizes": [3]})
    other: Any = registry.rebuild(first, SPEC, inner={"name": "wrapper", "inner": "plain"})
    assert other.inner.inner.lr == 0.1
    assert overlay({"name": "a", "lr": 1}, {"name": "b"}) == {"name": "b"}
    assert overlay({"name": "a", "lr": 1}, {"name": "a"}) == {"name": "a", "lr": 1}


def test_an_object_at_the_address_of_another_is_not_taken_for_it() -> None:
    """Python gives the id of a deleted object to a new one."""
    component, other = Plain(SPEC), Plain(SPEC)
    how = Built(group="learners", name="plain", options={}, distribution="", version="")
    assert recall({id(component): (lambda: component, how)}, component) is how
    assert recall({id(component): (lambda: other, how)}, component) is None


def test_rebuilding_shares_no_parameters(registry: Registry) -> None:
    """An encoder that was given as an object is copied; otherwise training one learner would change the other."""
    encoder = torch.nn.Linear(2, 2)
    first = registry.learner("wrapper", SPEC, inner="plain", encoder=encoder)
    other = registry.rebuild(first, SPEC)
    assert other.encoder is not encoder
    assert torch.equal(other.encoder.weight, encoder.weight)


def test_info_tells_the_options(registry: Registry) -> None:
    """Each has a name, a type, a default and a line of documentation; the learner chooses the sizes of a memory."""
    info = registry.info("plain")
    assert [str(option) for option in info.options] == ["lr: float = 0.1", "sizes: tuple[int, ...] = (1,)"]
    assert info.options[0].doc == "the rate."
    assert info.plugin.kinds == ("classification", "regression")
    assert info.doc.startswith("A learner with one random parameter.")
    assert [(o.name, o.required) for o in registry.info("slots").options] == [
        ("slots", False),
        ("width", False),
        ("reads", False),
        ("sharp", False),
    ]


def test_error_while_building_names_the_plugin() -> None:
    """The factory's own exception is raised, with a note that names the plugin."""

    def fragile(*, way: int = 5) -> Any:
        raise ZeroDivisionError("by nothing")

    made = Registry()
    made.register(fragile, group="tasks")
    with pytest.raises(ZeroDivisionError) as caught:
        made.tasks("fragile")
    assert caught.value.__notes__ == [
        f"while building tasks 'fragile' (registered from {__name__}:{fragile.__qualname__})"
    ]


def test_learner_factory_without_a_place_for_the_spec_is_refused() -> None:
    """A factory must be callable as ``factory(spec, **options)``."""
    made = Registry()
    made.register(lambda *, lr=0.1: None, name="specless", group="learners")
    with pytest.raises(PluginError, match="expected one that takes the spec of the tasks first"):
        made.learner("specless", SPEC)


# -------------------- discovery


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a folder on sys.path for hand-made distributions."""
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("handmade")]:
        del sys.modules[name]


def distribution(site: Path, name: str, entry_points: str, *, version: str = "1.0", metadata: bool = True) -> Path:
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    if metadata:
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n\nName: not this\n")
    (info / "entry_points.txt").write_text(entry_points)
    importlib.invalidate_caches()
    return info


def handmade(registry: Registry) -> dict[str, Plugin]:
    return {p.name: p for p in registry.plugins() if "handmade" in p.distribution}


@pytest.mark.parametrize("line", ["Name: \x1b[2J", "Name: \u202e", "Name:", "Name: a b"])
def test_a_name_that_is_none_is_taken_from_the_folder(site: Path, line: str) -> None:
    """A list must name the distribution of a plugin that is broken."""
    info = distribution(site, "handmade-odd", "[kshot.tasks]\nodd = handmade_absent:Tasks\n")
    (info / "METADATA").write_text(f"{line}\nVersion: 1.0\n")
    (plugin,) = handmade(Registry()).values()
    assert (plugin.distribution, plugin.version, plugin.state) == ("handmade_odd", "1.0", "broken")


@pytest.mark.parametrize("named", ["few-tasks", "few-alias", "handmade-few"])
def test_a_plugin_can_be_disabled_by_name_alias_and_distribution(
    named: str, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spaces around the names do not matter."""
    entries = "[kshot.tasks]\nfew-tasks = handmade_few:Few\n[kshot.manifest]\nfew = handmade_few:plugin.toml\n"
    distribution(site, "handmade-few", entries)
    (site / "handmade_few").mkdir()
    (site / "handmade_few/__init__.py").write_text("class Few: ...")
    (site / "handmade_few/plugin.toml").write_text("api_level = 1\n[tasks.few-tasks]\naliases = ['few-alias']")
    monkeypatch.setenv("KSHOT_DISABLE", f"something, {named} ,")
    assert [p.state for p in Registry().plugins() if p.name == "few-tasks"] == ["disabled"]
    monkeypatch.setenv("KSHOT_DISABLE", "something")
    assert [p.state for p in Registry().plugins() if p.name == "few-tasks"] == ["ok"]


@pytest.mark.parametrize(("level", "state"), [(0, "incompatible"), (1, "ok"), (2, "incompatible")])
def test_a_plugin_of_another_api_level_is_not_used(level: int, state: str, site: Path) -> None:
    """Whether it is older or newer."""
    distribution(
        site,
        "handmade-other",
        "[kshot.tasks]\nother-tasks = handmade_other:Few\n[kshot.manifest]\nx = handmade_other:p.toml\n",
    )
    (site / "handmade_other").mkdir()
    (site / "handmade_other/__init__.py").write_text("class Few: ...")
    (site / "handmade_other/p.toml").write_text(f"api_level = {level}\n[tasks.other-tasks]")
    assert [p.state for p in Registry().plugins() if p.name == "other-tasks"] == [state]


def test_malformed_line_of_entry_points_costs_one_plugin_only(site: Path) -> None:
    """importlib.metadata would raise an exception for the entire file."""
    (site / "handmade_a.py").write_text("class Tasks:\n    pass\n")
    lines = [
        "no equals sign",
        "no-colon = handmade_a",
        "Bad_Name = handmade_a:Tasks",
        "good = handmade_a : Tasks [extra]",
    ]
    distribution(site, "handmade", "[other]\nx = y\n[kshot.tasks]\n# note\n" + "\n".join(lines))
    found = handmade(Registry())
    assert found["no equals sign"].reason == "got the entry point '', expected 'module:attribute'"
    assert found["no-colon"].reason == "got the entry point 'handmade_a', expected 'module:attribute'"
    assert found["Bad_Name"].reason.startswith("got the name 'Bad_Name'")
    assert (found["good"].state, found["good"].target) == ("ok", "handmade_a:Tasks")
    assert {p.state for p in found.values()} == {"broken", "ok"}
    for name in set(found) - {"good"}:
        with pytest.raises(PluginError, match="is broken: "):
            Registry().load(name)


def test_distribution_without_metadata_is_listed_by_its_folder(site: Path) -> None:
    """What an incomplete pip uninstall leaves behind must not stop the list."""
    distribution(site, "handmade", "[kshot.tasks]\na = handmade_gone:Tasks\n", metadata=False)
    plugin = handmade(Registry())["a"]
    assert (plugin.distribution, plugin.version, plugin.state) == ("handmade", "1.0", "broken")
    assert plugin.reason.startswith("stale entry point: the module handmade_gone does not exist")


def test_distribution_found_twice_counts_once(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An editable install beside its source tree counts once: the first on sys.path, whose code is imported."""
    (site / "handmade_b.py").write_text("class Tasks:\n    pass\n")
    later = tmp_path / "later"
    later.mkdir()
    distribution(site, "handmade-b", "[kshot.tasks]\nb = handmade_b:Tasks\n", version="2.0")
    distribution(later, "Handmade_B", "[kshot.tasks]\nb = handmade_b:Tasks\n", version="1.0")
    monkeypatch.setattr(sys, "path", [*sys.path, str(later)])
    plugin = handmade(Registry())["b"]
    assert (plugin.version, plugin.state) == ("2.0", "ok")


def test_manifest_that_is_not_there_is_broken(site: Path) -> None:
    """A wheel that lacks the file named by its entry point must be noticed."""
    (site / "handmade_c.py").write_text("class Tasks:\n    pass\n")
    points = "[kshot.tasks]\nc = handmade_c:Tasks\n[kshot.manifest]\nc = handmade_c:plugin.toml\n"
    distribution(site, "handmade-c", points)
    plugin = handmade(Registry())["c"]
    assert plugin.state == "broken"
    assert plugin.reason.startswith("handmade_c/plugin.toml does not exist")


def test_manifest_of_a_name_without_entry_point_is_shown(site: Path) -> None:
    """A plugin may have been added after an editable install; the others of the distribution still work."""
    package = site / "handmade_d"
    package.mkdir()
    (package / "__init__.py").write_text("class Tasks:\n    pass\n")
    (package / "plugin.toml").write_text("api_level = 1\n[tasks.d]\nsummary = 'D'\n[tasks.later]\nsummary = 'L'\n")
    points = "[kshot.tasks]\nd = handmade_d:Tasks\n[kshot.manifest]\nd = handmade_d:plugin.toml\n"
    distribution(site, "handmade-d", points)
    found = handmade(Registry())
    assert (found["d"].state, found["d"].summary) == ("ok", "D")
    assert found["later"].state == "broken"
    assert "install handmade-d again" in found["later"].reason
    made = Registry()
    with pytest.raises(PluginError, match="no such entry point"):
        made.load("later")


def test_refresh_sees_what_was_installed_since(site: Path) -> None:
    """``refresh`` is for pip install in a notebook; a plugin that failed is tried again."""
    made = Registry()
    assert handmade(made) == {}
    (site / "handmade_e.py").write_text("raise ValueError('not yet')\n")
    distribution(site, "handmade-e", "[kshot.tasks]\ne = handmade_e:Tasks\n")
    assert handmade(made) == {}
    made.refresh()
    with pytest.raises(PluginError, match="not yet"):
        made.load("e")
    assert made.find("e").state == "broken"
    (site / "handmade_e.py").write_text("class Tasks:\n    pass\n# fixed\n")
    made.refresh()
    assert made.find("e").state == "ok"
    assert made.load("e").__name__ == "Tasks"


def test_target_that_is_not_callable_is_broken(site: Path) -> None:
    """An entry point may name a constant by mistake."""
    (site / "handmade_f.py").write_text("Tasks = 3\n")
    distribution(site, "handmade-f", "[kshot.tasks]\nf = handmade_f:Tasks\n")
    with pytest.raises(PluginError, match="neither a class nor a function"):
        Registry().load("f")


def test_listing_among_sixty_distributions_finds_every_plugin(site: Path) -> None:
    """All plugins are listed with their manifests (benchmarks/startup.py measures how long it takes)."""
    for i in range(60):
        name = f"handmade-{i}"
        package = site / f"handmade_x{i}"
        package.mkdir()
        (package / "__init__.py").write_text("")
        (package / "tasks.py").write_text("")
        (package / "plugin.toml").write_text(f"api_level = 1\n[tasks.x{i}]\nsummary = 'x'\n")
        points = f"[kshot.tasks]\nx{i} = handmade_x{i}.tasks:Tasks\n"
        points += f"[kshot.manifest]\nx = handmade_x{i}:plugin.toml\n"
        distribution(site, name, points if i < 36 else "[console_scripts]\nx = y:z\n")
    found = Registry().plugins()
    assert sum(p.state == "ok" and p.summary == "x" for p in found) == 36


def test_importing_the_registry_imports_no_torch() -> None:
    """Listing plugins stays within its import budget."""
    heavy = "[m for m in ('torch', 'numpy', 'pluggy') if m in sys.modules]"
    program = f"import sys, kshot.registry; kshot.registry.plugins(); print({heavy})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_first_party_name_has_group_and_distribution() -> None:
    """The table has all of our plugins; a distribution is called `kshot-NAME` unless it has several plugins."""
    table = tomllib.loads(Path(kshot.registry.__file__).with_name("first_party.toml").read_text(encoding="utf-8"))
    elsewhere = {
        "caml": "kshot-cavia",
        "meta-sgd": "kshot-metasgd",
        "lstm": "kshot-mann",
        "tuned-optimizer": "kshot-l2l",
        "associative-recall": "kshot-copy",
        "repeat-copy": "kshot-copy",
        "digits-mlp": "kshot-quadratics",
        "pooled-nets": "kshot-digit-nets",
        "outliers": "kshot-gradient-agreement",
        "metasgd-rl": "kshot-maml-rl",
        "cartpole": "kshot-gymnasium",
        "pendulum": "kshot-gymnasium",
        "half-cheetah": "kshot-gymnasium",
    }
    for name, row in table.items():
        assert row["group"] in kshot.registry.GROUPS
        assert row["distribution"] == elsewhere.get(name, f"kshot-{name}")
        assert row["summary"]


# -------------------- damaged distributions and texts


def test_folder_that_pip_left_shadows_no_version(site: Path) -> None:
    """An interrupted pip renames the folder of the old version to ``~andmade``; its entry points are stale."""
    (site / "handmade_g.py").write_text("class New:\n    pass\n")
    old = [("~andmade-g", "1.0", "Old"), ("~~ndmade-g", "1.1", "Old")]
    for stem, version, name in (*old, ("handmade-g", "2.0", "New")):
        info = distribution(site, stem, f"[kshot.tasks]\ng = handmade_g:{name}\n", version=version)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: handmade-g\nVersion: {version}\n")
    plugin = handmade(Registry())["g"]
    assert (plugin.version, plugin.state, Registry().load("g").__name__) == ("2.0", "ok", "New")
    left = [text for text in problems() if str(site) in text]
    assert len(left) == 2
    assert "was left by an interrupted pip and is ignored" in left[0]


def test_preparation_that_pip_left_is_not_registered(site: Path) -> None:
    """What it names may be called for somebody else's run."""
    distribution(site, "~andmade-h", "[kshot.preparations]\nh = handmade_h:prepare\n")
    assert "handmade_h:prepare" not in kshot.registry.discovery.preparations()


def test_complete_one_of_two_versions_in_a_folder_is_read(site: Path) -> None:
    """An interrupted pip may have removed METADATA only; two complete versions are reported."""
    (site / "handmade_i.py").write_text("class New:\n    pass\n")
    distribution(site, "handmade-i", "[kshot.tasks]\ni = handmade_i:Old\n", version="1.0", metadata=False)
    distribution(site, "handmade-i", "[kshot.tasks]\ni = handmade_i:New\n", version="2.0")
    assert handmade(Registry())["i"].version == "2.0"
    assert any("two versions of handmade-i, " in text for text in problems())


def test_byte_order_mark_and_foreign_bytes_hide_no_plugin(site: Path) -> None:
    """Some editors write the mark; the rest of the file is as good as any."""
    (site / "handmade_j.py").write_text("class Tasks:\n    pass\n")
    info = distribution(site, "handmade-j", "")
    (info / "entry_points.txt").write_bytes("\ufeff[kshot.tasks]\nj = handmade_j:Tasks\n# caf".encode() + b"\xe9\n")
    assert handmade(Registry())["j"].state == "ok"
    assert any("entry_points.txt" in text and "can't be read" in text for text in problems())


def test_texts_of_a_plugin_can_be_shown(site: Path) -> None:
    """A terminal obeys control characters; a name of any length would fill it."""
    (site / "handmade_k.py").write_text("raise ValueError('\\x1b[2Jgone\\r' + 'x' * 100_000)\n")
    distribution(site, "handmade-k", f"[kshot.tasks]\nk = handmade_k:Tasks\n{'l' * 200} = handmade_k:Tasks\n")
    made = Registry()
    with pytest.raises(PluginError) as caught:
        made.load("k")
    reason = made.find("k").reason
    assert [c for c in str(caught.value) + reason if c in "\x1b\r"] == []
    assert len(str(caught.value)) < 1000
    assert len(reason) < 30_000
    assert handmade(made)["l" * 200].reason == "got a name of 200 letters, expected at most 64"


def test_exception_without_a_message_is_shown(site: Path) -> None:
    """A plugin's own exception may fail when its message is made."""
    (site / "handmade_m.py").write_text(
        "class Odd(Exception):\n    def __str__(self):\n        raise ValueError\nraise Odd\n"
    )
    distribution(site, "handmade-m", "[kshot.tasks]\nm = handmade_m:Tasks\n")
    with pytest.raises(PluginError, match=r"raised Odd: \(its message can't be shown: ValueError\)"):
        Registry().load("m")


def test_options_that_need_too_much_memory_are_refused_with_their_values() -> None:
    """torch's error names neither the plugin nor its options."""

    def large(*, size: int = 1) -> Any:
        return torch.empty(size)

    made = Registry()
    made.register(large, group="tasks")
    for size in (1 << 60, 1 << 62):
        with pytest.raises(OptionError, match=rf"got options that need more memory than there is \(size={size}\)"):
            made.tasks("large", size=size)


def test_a_path_that_the_system_refuses_is_an_option_that_is_wrong() -> None:
    """A name can be too long, and a folder above it can be unreadable."""

    def tasks(*, root: Path) -> Any:
        return root.stat()

    registry = Registry()
    registry.register(tasks, name="my-tasks", group="tasks")
    with pytest.raises(
        DataError, match=r"^tasks 'my-tasks' .*: got a path 'x+\.\.\. that can't be used \(File name too long\)"
    ):
        registry.tasks("my-tasks", root="x" * 5000)


@pytest.mark.parametrize(
    ("lines", "name"),
    [
        ("import random; random.seed(0)", "the state of random"),
        ("import numpy; numpy.random.seed(0)", "the state of numpy.random"),
        ("import numpy; numpy.seterr(all='raise')", "numpy's handling of errors"),
        ("import torch; torch.manual_seed(3)", "torch's random state"),
        ("import torch; torch.set_default_dtype(torch.float64)", "torch's default dtype"),
        ("import torch; torch.set_grad_enabled(False)", "torch's gradient mode"),
        ("import torch; torch.use_deterministic_algorithms(True)", "torch's deterministic algorithms"),
        ("import torch; torch.set_float32_matmul_precision('medium')", "torch's precision of matrix products"),
        ("import os; os.chdir('/')", "the working directory"),
        ("import sys; sys.stdout = None", "standard output"),
    ],
)
def test_import_that_changes_the_process_is_undone(site: Path, lines: str, name: str) -> None:
    """The others would compute something else; the warning names the plugin and what it changed."""
    (site / "handmade_n.py").write_text(f"{lines}\nclass Tasks:\n    pass\n")
    distribution(site, "handmade-n", "[kshot.tasks]\nn = handmade_n:Tasks\n")
    changed: list[str] = []
    with kept(changed.extend), pytest.warns(UserWarning, match=rf"^tasks 'n' \(handmade-n 1.0\): importing .* {name}"):
        Registry().load("n")
    assert changed == []


def test_code_in_a_run_folder_is_never_imported_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even if the run lies within the folder of an installed package, as the runs of an editable install may."""
    run = tmp_path / "installed/runs/r"
    monkeypatch.setattr(modules, "_installed_roots", lambda: {tmp_path / "installed"})
    rebuilding = modules._Rebuilding(run, None)
    assert modules._may_import(tmp_path / "installed/nets.py", rebuilding)
    assert not modules._may_import(run / "nets.py", rebuilding)
    assert not modules._may_import(tmp_path / "nets.py", rebuilding)
    assert modules._may_import(tmp_path / "nets.py", modules._Rebuilding(run, tmp_path))


def test_a_contained_learner_is_built_for_the_spec_that_its_container_chooses(registry):
    """It has the parameters that it has alone with the same seed, and is recorded and rebuilt with its options."""
    made: Any = registry.learner("containing", SPEC, meta={"name": "plain", "lr": 0.5}, seed=3)
    assert made.meta.spec.input_shape == (7,)
    assert made.meta.lr == 0.5
    alone = registry.learner("plain", SPEC, seed=3)
    assert torch.equal(made.meta.weight, alone.weight)
    how: Any = registry.built(made)
    assert how.portable
    assert how.plain() == {"name": "containing", "meta": {"name": "plain", "lr": 0.5}}
    again: Any = registry.rebuild(made, SPEC, meta={"lr": 0.25})
    assert (again.meta.lr, again.meta.spec.input_shape) == (0.25, (7,))
    assert torch.equal(again.meta.weight, alone.weight)
    # In Python also a class or function, which can't be recorded.
    given: Any = registry.learner("containing", SPEC, meta=Plain)
    assert given.meta.spec.input_shape == (7,)
    assert not registry.built(given).portable


def test_an_error_of_a_contained_learner_names_the_option(registry):
    """It is raised only when the container builds it, far from where the user wrote the option."""
    with pytest.raises(OptionError, match=r"^option meta of learner 'containing'.*rate: unknown option"):
        registry.learner("containing", SPEC, meta={"name": "plain", "rate": 1})
    with pytest.raises(OptionError, match=r"learner 'containing'.*: meta: got 5 \(int\), expected a callable"):
        registry.learner("containing", SPEC, meta=5)
