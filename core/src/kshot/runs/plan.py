"""Decide the components of a run and their options, record them as plain values, and build the run from them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
from attrs import field, frozen

from kshot import registry
from kshot._engine.optimizer import Outer
from kshot._engine.recording import obstacles_of, settled
from kshot._engine.run_folder import CONFIG_FILE
from kshot._engine.stored import fields, fitting, list_of, mapping_of, optional, plain, text, whole
from kshot.errors import DataError, KshotError, OptionError, RunError
from kshot.protocols import Pooled
from kshot.registry.building import overlay
from kshot.registry.modules import rebuilt_run
from kshot.registry.options import options_of, validate
from kshot.runs.chosen import Chosen, chosen_encoder
from kshot.runs.embedded import Embedded
from kshot.runs.launch import processes
from kshot.runs.recipe import Config, EngineOptions, Table, evaluate_options
from kshot.runs.views import lowered, suited
from kshot.spec import Training

log = logging.getLogger("kshot.runs")


ADVICE = "correct it, or take the run folder from where it was made"

_OPTIONS = mapping_of(plain)


def _component(value: Any, key: str) -> None:
    """Accept the name of a component and plain options."""
    fields({"name": text}, others=True)(value, key)
    plain(value, key)


SEED = whole(-(2**63), 2**64 - 1)

PLAN = fields(
    {"learner": _component, "training": _component, "tests": list_of(_component, 1)},
    {
        **dict.fromkeys(("own", "optimizer", "engine", "evaluate", "about"), _OPTIONS),
        "backend": _component,
        "hooks": mapping_of(_OPTIONS),
        "seed": SEED,
        "test_learners": list_of(_OPTIONS),
        "init_from": optional(text),
        "learner_seed": optional(SEED),
    },
)
"""A stored plan, see ``Plan``."""


def _tuple(tables: Iterable[Table]) -> tuple[Table, ...]:
    return tuple(tables)


@frozen
class Plan:
    """Describe everything that a run is built from. A component is ``{"name": ..., **options}``.

    Attributes:
        learner, backend: components.
        training: the tasks to train on.
        tests: the tasks of each test.
        test_learners: for each test, the options of the learner that differ from the trained one's.
        init_from: the run whose parameters it starts from, or None.
        own: which options of ``training`` are the learner's own choice.
        optimizer, engine, evaluate: options; those that are left out have the learner's or the engine's defaults.
        hooks: extra hooks and their options.
        seed: seed of training, and of the learner's initialisation unless ``learner_seed`` is given.
        learner_seed: seed of the learner's initialisation, or None for ``seed``.
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
    learner_seed: int | None = None

    @classmethod
    def of(cls, config: Config) -> Plan:
        """Make the plan of a configuration, which decides the tasks to train on.

        They are the tasks that the user named, with the options that the learner prefers for training, and over these
        the options of ``[training]``.

        Raises:
            PluginError: the plugin of learner, tasks, backend or a hook can't be used.
            OptionError: an option of the optimizer is wrong.
        """
        factory = registry.load(str(config.learner["name"]), "learners")
        defaults = getattr(factory, "training_defaults", None)
        chosen = chosen_encoder(config.learner)
        if chosen is not None:  # inputs as the encoder takes them, as far as the user says nothing else
            config = attrs.evolve(config, tasks=suited(config.tasks, chosen.task_options))
        for name in config.hook:
            registry.load(name, "hooks")
        backend = {"name": registry.default_backend(config.backend), **config.backend}
        registry.load(str(backend["name"]), "backends")
        tasks_factory = registry.load(str(config.tasks["name"]), "tasks")
        # The learner's own choices, as far as these tasks have such options and the user chooses nothing else.
        accepted = {option.name for option in options_of(tasks_factory)}
        own = {name: value for name, value in getattr(defaults, "tasks", {}).items() if name in accepted}
        own = {name: value for name, value in own.items() if name not in config.training}
        wanted = config.test or ({},)
        plan = cls(
            learner=config.learner,
            training=lowered(overlay({**config.tasks, **own}, config.training)),
            tests=[
                lowered(overlay(config.tasks, {n: v for n, v in test.items() if n != "learner"})) for test in wanted
            ],
            test_learners=[dict(test.get("learner", {})) for test in wanted],
            own=own if str(config.training.get("name", config.tasks["name"])) == str(config.tasks["name"]) else {},
            optimizer=validate(Outer, config.optimizer, who="optimizer"),
            engine=config.engine,
            backend=backend,
            evaluate=config.evaluate,
            hooks=config.hook,
            seed=config.seed,
            learner_seed=config.learner_seed,
            about=config.about,
            init_from=config.init_from,
        )
        return plan if chosen is None or not chosen.frozen else plan.embedded(chosen)

    def embedded(self, chosen: Chosen) -> Plan:
        """Return the same plan on embeddings, which a frozen encoder computes once instead of in every episode."""

        def embedded(tasks: Table) -> Table:
            return {"name": "embedded", "of": tasks, "encoder": chosen.encoder}

        return attrs.evolve(
            self,
            learner={**self.learner, chosen.option: "identity"},
            training=embedded(self.training),
            tests=map(embedded, self.tests),
        )

    @classmethod
    def of_run(cls, run: Path, config: Mapping[str, Any]) -> Plan:
        """Read the plan from the config.json of a run folder.

        Raises:
            RunError: it has no plan; the message lists the arguments that prevent building the run again.
        """
        plan = config.get("plan", config.get("cli"))  # "cli" in the first run folders, which only commands could build
        where = run / CONFIG_FILE
        if not isinstance(plan, Mapping):
            reasons = config.get("obstacles") or ["it names no parts"]
            fitting(reasons, list_of(text), where, "obstacles", advice=ADVICE)
            lines = "".join(f"\n  - {obstacle}" for obstacle in reasons)
            raise RunError(
                f"{where}: this run can't be built again from its folder:{lines}\nUntil then use it where its parts "
                "are: Engine(learner, tasks, run=...), engine.resume(), and kshot.Trained(learner, spec)"
            )
        fitting(plan, PLAN, where, "plan", advice=ADVICE)
        # The options of plugins are checked when they are built; those of the engine can be checked here.
        for name in ("optimizer", "engine", "evaluate"):
            given = plan.get(name, {})
            try:
                if name == "evaluate":
                    evaluate_options(given)
                else:
                    validate(Outer if name == "optimizer" else EngineOptions, given, who=name)
            except OptionError as error:
                raise RunError(f"{where}: plan.{str(error).splitlines()[0]}; {ADVICE}") from error
        if len(plan.get("test_learners", plan["tests"])) != len(plan["tests"]):
            expected = f"a list of {len(plan['tests'])}, one for each test"
            raise RunError(f"{where}: plan.test_learners: got another number than of tests, expected {expected}")
        return cls(**plan)


@frozen
class Parts:
    """Store the components that were built from a plan."""

    learner: Any
    training: Any
    tests: tuple[Any, ...]
    backend: Any
    hooks: Mapping[str, Any]


def build_tasks(plan: Plan, *, new: bool = False) -> tuple[Plan, Any, tuple[Any, ...]]:
    """Build the tasks of a plan; tasks with equal options are one object.

    Args:
        new: whether the run is new, so that the learner's own choices are limited to the data, see ``within``.

    Returns:
        The plan, limited to the data; the tasks to train on; the tasks of each test.

    Raises:
        PluginError, OptionError, DataError: tasks can't be built.
    """
    known: list[tuple[Table, Any]] = []

    def once(options: Table) -> Any:
        for same, tasks in known:
            if same == options:
                return tasks
        known.append((options, component("tasks", options)))
        return known[-1][1]

    if (run := rebuilt_run()) is not None and (named := list(paths_of(plan))):
        log.info("note: %s names these paths: %s", run / CONFIG_FILE, ", ".join(named))
    tests = tuple(once(options) for options in plan.tests)
    if new:
        plan = within(plan, tests[0])
    with blame_own(plan):
        return plan, once(plan.training), tests


def within(plan: Plan, tasks: Any) -> Plan:
    """Return the plan with the learner's default way and queries limited to the size of the split to train on.

    A learner that prefers to train on 30 classes at once can train on a folder of 18. Options that the user asked for
    are not changed, and are refused if the data are too few.
    """
    split, spec = str(plan.engine.get("split", "train")), tasks.spec
    tasks = getattr(tasks, "of", tasks) if isinstance(tasks, Embedded) else tasks  # which has the same classes
    if not plan.own.keys() & {"way", "query"} or not isinstance(tasks, Pooled) or split not in spec.splits:
        return plan
    pool, shot = tasks.pool(split), plan.training.get("shot", spec.shot)
    most = {"way": max(2, pool.classes)}  # a single class can't be classified, and the tasks refuse it
    if isinstance(shot, int):
        most["query"] = max(1, pool.fewest - shot)
    fewer = {n: most[n] for n, value in plan.own.items() if isinstance(value, int) and value > most.get(n, value)}
    if not fewer:
        return plan
    return attrs.evolve(plan, own={**plan.own, **fewer}, training=lowered({**plan.training, **fewer}))


def tell_limits(wanted: Plan, plan: Plan) -> None:
    """Log which of the learner's own choices were limited to the size of the split to train on, see ``within``."""
    fewer = {name: value for name, value in plan.own.items() if value != wanted.own[name]}
    if fewer:
        before = listed({name: wanted.own[name] for name in fewer})
        split = str(plan.engine.get("split", "train"))
        log.warning("note: training with %s instead of %s, because split %r has no more", listed(fewer), before, split)


def build_backend(plan: Plan) -> Any:
    """Build the backend. It must be built first, since several processes communicate through it.

    Raises:
        PluginError, OptionError: it can't be built.
        OptionError: several processes were started, and the backend does not join them.
    """
    backend = component("backend", plan.backend)
    if processes() > 1 and backend.world.size == 1:
        name = plan.backend["name"]
        raise OptionError(
            f"got {processes()} processes and backend {name}, with which each of them would train on its own; "
            f"expected a backend that joins them: --backend=distributed --backend.local={name}"
        )
    return backend


def build(plan: Plan, training: Any, tests: Iterable[Any], backend: Any) -> Parts:
    """Build the other components of a plan, for its tasks.

    Raises:
        PluginError, OptionError, DataError: a component can't be built.
        MisfitError: the learner's class doesn't fit the tasks.
    """
    hooks = {}
    for name, options in plan.hooks.items():
        with building(f"hook {name!r}"):
            hooks[name] = registry.hook(name, **options)
    learner = build_learner(plan, training.spec)
    backend.place(learner)  # may settle what the backend chooses, such as the precision, which a run records
    return Parts(learner, training, tuple(tests), backend, hooks)


def build_learner(plan: Plan, spec: Any) -> Any:
    """Build the learner of a plan, as it was initialised, for tasks of this spec."""
    seed = plan.seed if plan.learner_seed is None else plan.learner_seed
    with building(f"learner {plan.learner['name']!r}"):
        return registry.learner(str(plan.learner["name"]), spec, seed=seed, **without_name(plan.learner))


def record(plan: Plan, parts: Parts) -> dict[str, Any]:
    """Return the plan in plain values with all automatic choices, so that building from it gives the same run."""
    own: Training = getattr(parts.learner, "training_defaults", Training())
    recorded = attrs.evolve(
        plan,
        learner=_plain(parts.learner),
        training=_plain(parts.training),
        tests=[_plain(test) for test in parts.tests],
        optimizer=Outer.of(own, **plan.optimizer).to_dict(),
        engine={"iterations": own.iterations, "meta_batch": own.meta_batch, **plan.engine},
        backend=settled(_plain(parts.backend), parts.backend.describe()),
        hooks={name: without_name(_plain(hook)) for name, hook in parts.hooks.items()},
    )
    return attrs.asdict(recorded, recurse=False)


def obstacles(parts: Parts) -> list[str]:
    """Return a sentence for every obstacle to building the components again from plain values."""
    named = {"learner": parts.learner, "tasks": parts.training, "backend": parts.backend}
    named |= {f"tasks of test {i + 1}": test for i, test in enumerate(parts.tests) if test is not parts.training}
    return [text for name, part in named.items() for text in obstacles_of(name, part)]


def component(group: str, options: Table) -> Any:
    """Build tasks or a backend from ``{"name": ..., **options}``."""
    with building(f"{group} {options['name']!r}"):
        return getattr(registry, group)(str(options["name"]), **without_name(options))


@contextlib.contextmanager
def building(who: str) -> Iterator[None]:
    """Report what a factory raises on a wrong value as an error of kshot, which names the run that is rebuilt, if any.

    Args:
        who: the component in words.

    Raises:
        RunError: the factory raised, and a run is being rebuilt.
        OptionError: the factory raised for options that the user gave.
    """
    run = rebuilt_run()
    try:
        yield
    except KshotError:
        raise
    except (ValueError, TypeError, ArithmeticError, RuntimeError, LookupError, MemoryError) as error:
        reason = f"got options with which it raised {type(error).__name__}: {error or 'no reason'}"
        if run is not None:
            raise RunError(f"{run / CONFIG_FILE}: {who}: {reason}, expected options that it takes") from error
        raise OptionError(
            f"{who}: {reason}, expected options that it takes; KSHOT_DEBUG=1 shows where it was raised"
        ) from error


def paths_of(plan: Plan) -> Iterator[str]:
    """Yield ``tasks.root = /data/pictures`` for each path among the options of a plan's tasks, hooks and start."""
    tables = [("training", "tasks", plan.training)]
    tables += [("tasks", "tasks", test) for test in plan.tests if test != plan.training]
    tables += [(f"hook.{name}", "hooks", {"name": name, **options}) for name, options in plan.hooks.items()]
    for section, group, table in tables:
        for option in options_of(registry.load(str(table["name"]), group)):
            value = table.get(option.name)
            if value is not None and "Path" in option.type:
                yield f"{section}.{option.name} = {value}"
    if plan.init_from is not None:
        yield f"init_from = {plan.init_from}"


def without_name(options: Mapping[str, Any]) -> Table:
    """Return the options without ``name``."""
    return {name: value for name, value in options.items() if name != "name"}


def _plain(component: Any) -> Table:
    how = registry.built(component)
    assert how is not None, "runs build by name"
    return how.plain()


@contextlib.contextmanager
def blame_own(plan: Plan) -> Iterator[None]:
    """Add to a DataError inside the block which training options are the learner's choice, and how to change them."""
    try:
        yield
    except DataError as error:
        if plan.own:
            flags = " ".join(f"--training.{name}=..." for name in plan.own)
            asks = f"training defaults of the learner: {listed(plan.own)}; choose other values with {flags}"
            error.args = (f"{error}\n{asks}",)
        raise


def listed(options: Mapping[str, Any]) -> str:
    """Return options as text: ``way 20, shot 1``."""
    return ", ".join(f"{name} {value}" for name, value in options.items())
