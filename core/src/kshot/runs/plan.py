"""From a configuration to components: names and options settled, recorded as plain values, built again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
from attrs import field, frozen

from kshot import registry
from kshot.runs.recipe import Config, Table, overlay
from kshot.cli.console import say
from kshot.runs.launch import processes
from kshot.errors import DataError, OptionError, RunError
from kshot._engine.optimizer import Outer
from kshot.protocols import Pooled
from kshot.registry.options import options_of, validate
from kshot.spec import Training


def _tuple(tables: Iterable[Table]) -> tuple[Table, ...]:
    return tuple(tables)


@frozen
class Plan:
    """All that a run is built from. Components are ``{"name": ..., **options}``.

    Attributes:
        learner, backend: components.
        training: the tasks trained on.
        tests: the tasks of each test.
        test_learners: for each test, the options of the learner that differ from the trained one's.
        init_from: the run whose parameters it begins from, or None.
        own: which options of ``training`` are the learner's own choice.
        optimizer, engine, evaluate: options; what is left out is the learner's or the engine's.
        hooks: extra hooks and their options.
        seed: of the learner's initialisation and of the engine.
        about: the recipe's documentation.
    """

    learner: Table
    training: Table
    tests: tuple[Table, ...] = field(converter=_tuple)
    own: Table = field(factory=dict)
    optimizer: Table = field(factory=dict)
    engine: Table = field(factory=dict)
    backend: Table = field(factory=lambda: {"name": "cpu"})
    evaluate: Table = field(factory=dict)
    hooks: dict[str, Table] = field(factory=dict)
    seed: int = 0
    about: Table = field(factory=dict)
    test_learners: tuple[Table, ...] = field(
        converter=_tuple, default=attrs.Factory(lambda self: ({},) * len(self.tests), takes_self=True)
    )
    init_from: str | None = None

    @classmethod
    def of(cls, config: Config) -> Plan:
        """Settle which tasks are trained on: the tasks, over them the learner's own way of training, over it
        what ``[training]`` says.

        Raises:
            PluginError: learner, tasks, backend or a hook can't be had.
            OptionError: an option of the optimizer is wrong.
        """
        factory = registry.load(str(config.learner["name"]), "learners")
        defaults = getattr(factory, "training_defaults", None)
        for name in config.hook:
            registry.load(name, "hooks")
        registry.load(str(config.backend.get("name", "cpu")), "backends")
        tasks_factory = registry.load(str(config.tasks["name"]), "tasks")
        accepted = {option.name for option in options_of(tasks_factory)}
        own = {name: value for name, value in getattr(defaults, "tasks", {}).items() if name in accepted}
        own = {name: value for name, value in own.items() if name not in config.training}
        wanted = config.test or ({},)
        return cls(
            learner=config.learner,
            training=overlay({**config.tasks, **own}, config.training),
            tests=[overlay(config.tasks, {n: v for n, v in test.items() if n != "learner"}) for test in wanted],
            test_learners=[dict(test.get("learner", {})) for test in wanted],
            own=own if str(config.training.get("name", config.tasks["name"])) == str(config.tasks["name"]) else {},
            optimizer=validate(Outer, config.optimizer, who="optimizer"),
            engine=config.engine,
            backend={"name": "cpu", **config.backend},
            evaluate=config.evaluate,
            hooks=config.hook,
            seed=config.seed,
            about=config.about,
            init_from=config.init_from,
        )

    @classmethod
    def of_run(cls, run: Path, config: Mapping[str, Any]) -> Plan:
        """The plan that a run folder's config.json holds.

        Raises:
            RunError: it holds none.
        """
        try:
            return cls(**config["cli"])
        except (KeyError, TypeError) as error:
            raise RunError(
                f"{run / 'config.json'} does not say how the command line would build this run ({error!r}); "
                "a run that was made in Python is taken up in Python: engine.resume()"
            ) from error


@frozen
class Parts:
    """The components of a plan."""

    learner: Any
    training: Any
    tests: tuple[Any, ...]
    backend: Any
    hooks: Mapping[str, Any]


def build_tasks(plan: Plan, *, new: bool = False) -> tuple[Plan, Any, tuple[Any, ...]]:
    """The plan as its data can serve it, the tasks trained on and those of each test; equal ones are one object.

    Args:
        new: the plan is not yet a run's, so the learner's own choices still give way to the data, see ``within``.

    Raises PluginError, OptionError, DataError.
    """
    made: list[tuple[Table, Any]] = []

    def once(options: Table) -> Any:
        for known, tasks in made:
            if known == options:
                return tasks
        made.append((options, component("tasks", options)))
        return made[-1][1]

    tests = tuple(once(options) for options in plan.tests)
    if new:
        plan = within(plan, tests[0])
    with blame_own(plan):
        return plan, once(plan.training), tests


def within(plan: Plan, tasks: Any) -> Plan:
    """The plan with the learner's own way and queries no more than the split to train on holds.

    A learner that likes to train on 30 classes at once is none the worse for a folder of 18. What the user asked for
    stays, and is refused where it is too much.
    """
    split, spec = str(plan.engine.get("split", "train")), tasks.spec
    if not plan.own.keys() & {"way", "query"} or not isinstance(tasks, Pooled) or split not in spec.splits:
        return plan
    pool, shot = tasks.pool(split), plan.training.get("shot", spec.shot)
    most = {"way": pool.classes}
    if isinstance(shot, int):
        most["query"] = max(1, pool.fewest - shot)
    fewer = {n: most[n] for n, value in plan.own.items() if isinstance(value, int) and value > most.get(n, value)}
    if not fewer:
        return plan
    wanted = listed({name: plan.own[name] for name in fewer})
    say(f"note: training with {listed(fewer)}, which is all that {split!r} has, instead of {wanted}")
    return attrs.evolve(plan, own={**plan.own, **fewer}, training={**plan.training, **fewer})


def build_backend(plan: Plan) -> Any:
    """The backend, which comes before all else: it is how several processes know of one another.

    Raises:
        PluginError, OptionError: it can't be built.
        OptionError: several processes were started, and it knows of one only.
    """
    backend = component("backend", plan.backend)
    if processes() > 1 and backend.world.size == 1:
        name = plan.backend["name"]
        raise OptionError(
            f"{processes()} processes were started together, and backend {name} would have each train for itself; "
            f"expected one that joins them: --backend=distributed --backend.local={name}"
        )
    return backend


def build(plan: Plan, training: Any, tests: Iterable[Any], backend: Any) -> Parts:
    """The other components of a plan, for its tasks.

    Raises:
        PluginError, OptionError, DataError: a component can't be built.
        MisfitError: the learner's class doesn't fit the tasks.
    """
    hooks = {name: registry.hook(name, **options) for name, options in plan.hooks.items()}
    options = without_name(plan.learner)
    learner = registry.learner(str(plan.learner["name"]), training.spec, seed=plan.seed, **options)
    backend.place(learner)  # which may settle what the backend chooses, and a run records
    return Parts(learner, training, tuple(tests), backend, hooks)


def record(plan: Plan, parts: Parts) -> dict[str, Any]:
    """The plan in plain values, with what was chosen automatically: building from it gives the same."""
    own: Training = getattr(parts.learner, "training_defaults", Training())
    settled = attrs.evolve(
        plan,
        learner=_plain(parts.learner),
        training=_plain(parts.training),
        tests=[_plain(test) for test in parts.tests],
        optimizer=Outer.of(own, **plan.optimizer).to_dict(),
        engine={"iterations": own.iterations, "meta_batch": own.meta_batch, **plan.engine},
        backend=chosen(_plain(parts.backend), parts.backend.describe()),
        hooks={name: without_name(_plain(hook)) for name, hook in parts.hooks.items()},
    )
    return attrs.asdict(settled, recurse=False)


def chosen(backend: Table, described: Mapping[str, Any]) -> Table:
    """The options of a backend, with what it chose where it was left to choose; in the backend within it too."""
    accepted = {option.name for option in options_of(registry.load(str(backend["name"]), "backends"))}
    made = dict(backend)
    for name in accepted & described.keys():
        value, inner = described[name], backend.get(name)
        if isinstance(value, Mapping) and "name" in value:
            value = chosen(dict(inner) if isinstance(inner, Mapping) else {"name": value["name"]}, value)
        made[name] = value
    return made


def component(group: str, options: Table) -> Any:
    """Tasks or a backend from ``{"name": ..., **options}``."""
    return getattr(registry, group)(str(options["name"]), **without_name(options))


def without_name(options: Mapping[str, Any]) -> Table:
    return {name: value for name, value in options.items() if name != "name"}


def _plain(made: Any) -> Table:
    how = registry.built(made)
    assert how is not None, "the command line builds by name"
    return how.plain()


@contextlib.contextmanager
def blame_own(plan: Plan) -> Iterator[None]:
    """Where the learner's own training tasks are what data can't serve, say so and how to change it."""
    try:
        yield
    except DataError as error:
        if plan.own:
            way_out = " ".join(f"--training.{name}=..." for name in plan.own)
            asks = f"{listed(plan.own)} while training is the learner's own choice; choose otherwise: {way_out}"
            error.args = (f"{error}\n{asks}",)
        raise


def listed(options: Mapping[str, Any]) -> str:
    """``way 20, shot 1``."""
    return ", ".join(f"{name} {value}" for name, value in options.items())
