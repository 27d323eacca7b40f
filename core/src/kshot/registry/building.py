"""Build a component from the name and options of its plugin, with the components among its options."""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from attrs import frozen

from kshot.errors import (
    DataError,
    KshotError,
    MisfitError,
    OptionError,
    PluginError,
    Unavailable,
)
from kshot.registry.conversion import Raw, shown
from kshot.registry.ledger import Built, Ledger, plain, recall, remember
from kshot.registry.modules import build_module
from kshot.registry.networks import asked, hint, is_encoder, named_networks
from kshot.registry.options import Option, options_of, takes_positional, validate
from kshot.registry.plugin import LEADING, MEMBERS, MEMORY_SIZES, A, Factory, Plugin

if TYPE_CHECKING:
    from kshot.spec import TaskSpec

# An option annotated with one of these types takes a component of the group, by name or as an object.
_NESTED = {
    "Learner": "learners",
    "LearnerFactory": "learner factories",
    "Callable[[TaskSpec], Learner]": "learner factories",  # the type that LearnerFactory is an alias of
    "TaskDistribution": "tasks",
    "MemoryFactory": "memories",
    "Callable[..., Memory]": "memories",  # the type that MemoryFactory is an alias of
    "Backend": "backends",
}


@frozen(eq=False)
class BoundMemory:
    """Bind options to a memory factory; ``kshot.memory(name, **options)`` returns one, and a learner is given it.

    The learner calls it as ``factory(slots, width, reads)`` with the sizes that it would choose. Sizes among the
    options override them, so the learner must read the actual sizes from the memory (``interface_size``,
    ``read_size``).

    Attributes:
        plugin: the plugin.
        factory: its factory, called with the sizes and the options.
        options: the options.
    """

    plugin: Plugin
    factory: Factory
    options: Mapping[str, Any]

    def __call__(self, slots: int, width: int, reads: int, **options: Any) -> Any:
        """Return a new memory: R = ``reads`` reads of M = ``slots`` slots of ``width`` numbers."""
        wanted = {"slots": slots, "width": width, "reads": reads, **options, **self.options}
        return _call(self.plugin, self.factory, *map(wanted.pop, MEMORY_SIZES), **wanted)


@frozen(eq=False)
class BoundLearner:
    """Bind name and options of a learner that is to be built for a spec which another learner chooses.

    A learner with an option of the type ``kshot.LearnerFactory`` is given one, and calls it with a spec. The built
    learner has the initial parameters that ``kshot.learner(name, spec, seed=seed, **options)`` has.

    Attributes:
        builder: builds the learner.
        name: name of the plugin.
        options: its options.
        seed: seed of the initialisation.
        who: the option that names it, for messages.
    """

    builder: Builder
    name: str
    options: Mapping[str, Any]
    seed: int | None
    who: str

    def __call__(self, spec: TaskSpec) -> Any:
        """Return the learner for tasks of this spec."""
        try:
            learner = self.builder.build("learners", self.name, self.options, spec=spec, seed=self.seed)
        except KshotError as exc:
            exc.args = (f"{self.who}: {exc}",)
            raise
        # How the learner was built is how the factory is built again: by the same name and options.
        ledger = self.builder.ledger
        remember(ledger, self, cast("Built", recall(ledger, learner)))
        return learner


class Builder:
    """Build components, and record in a ledger how they were built.

    Args:
        load: function from group and name to plugin and factory; raises PluginError if the plugin can't be used.
        ledger: the ledger.
    """

    def __init__(self, load: Callable[[str, str], tuple[Plugin, Factory]], ledger: Ledger) -> None:
        self.load, self.ledger = load, ledger

    def build(
        self,
        group: str,
        name: str,
        options: Mapping[str, Any],
        spec: TaskSpec | None = None,
        seed: int | None = None,
    ) -> Any:
        """Build a component.

        Args:
            group, name: group and name of the plugin.
            options: options of the plugin.
            spec: spec of the tasks, for a learner or an encoder, and for those among the options.
            seed: seed of the initialisation, for a learner and the learners among its options.

        Raises:
            PluginError, OptionError, MisfitError: see ``Registry.learner``.
        """
        plugin, factory = self.load(group, name)
        skip = LEADING.get(group, 0)
        if not takes_positional(factory, skip):
            raise PluginError(
                f"{plugin.who}: got a factory without arguments, expected one that takes the spec of the tasks first"
            )
        # 1. Sort the options: components and networks are built first, all others are checked by their type.
        known = options_of(factory, skip_positional=skip)
        nested = _nested(plugin, known, options)
        networks = named_networks(self.load, plugin.who, known, options)
        values = validate(
            factory,
            {key: value for key, value in options.items() if key not in nested and key not in networks},
            who=plugin.who,
            skip_positional=skip,
            missing_ok=(*nested, *networks, *(MEMORY_SIZES if group == "memories" else ())),
        )
        if group == "learners":
            _check_fit(plugin, factory, spec)
        # 2. Build the components among the options.
        for key, (inner, inner_name, inner_options) in nested.items():
            if inner == "learner factories":
                who = f"option {key} of {plugin.who}"
                values[key] = BoundLearner(self, inner_name, inner_options, seed, who)
                continue
            own = (spec, seed) if inner == "learners" else (None, None)
            if inner == "learners" and spec is None:
                raise OptionError(f"{plugin.who}: option {key}: got the name of a learner, expected a learner object")
            try:
                values[key] = self.build(inner, inner_name, inner_options, *own)
            except KshotError as exc:
                exc.args = (f"option {key} of {plugin.who}: {exc}",)
                raise
        # 3. Build the networks that are named, then the component itself, with initial parameters from the seed. Those
        # of a view are built for the tasks below.
        below = spec if spec is not None else getattr(values.get("of"), "spec", None)
        with contextlib.nullcontext() if seed is None else _seeded(seed):
            for key, (named, module_options) in networks.items():
                values[key] = self._network(named, module_options, below, who=f"option {key} of {plugin.who}")
            component: Any
            if group == "memories":
                component = BoundMemory(plugin, factory, values)
            else:
                component = _call(plugin, factory, *([spec] if skip else []), **values)
        if skip:
            import torch

            if isinstance(component, torch.nn.Module):
                component.eval()  # ready to adapt; the engine sets the training mode
            elif group == "encoders":
                raise PluginError(f"{plugin.who}: got a {type(component).__name__}, expected a torch.nn.Module")
        # 4. Record how the component was built.
        paths = frozenset(option.name for option in known if "Path" in option.type)
        remember(self.ledger, component, self._how(plugin, values, seed, paths))
        return component

    def encoder(self, name: str, options: Mapping[str, Any], spec: TaskSpec | None, seed: int | None = 0) -> Any:
        """Build the encoder of a plugin; ``NAME:MODEL`` stands for the plugin NAME with the option ``model``.

        Args:
            name, options: name and options of the plugin.
            spec: spec of the tasks.
            seed: of initial parameters; None to draw them by the present random state.

        Raises:
            PluginError, OptionError, DataError: see ``Registry.encoder``.
        """
        name, _, model = name.partition(":")
        if model and "model" in options:
            raise OptionError(f"encoder {name!r}: got {name}:{model} and the option model; expected one of them")
        given = {"model": Raw(model), **options} if model else options
        return self.build("encoders", name, given, spec=spec, seed=seed)

    def _network(self, path: str, options: Mapping[str, Any], spec: TaskSpec | None, *, who: str) -> Any:
        """Build a network that an option names: the encoder of a plugin, or that of an import path, which is noted."""
        if is_encoder(self.load, path):
            try:
                return self.encoder(path, options, spec, seed=None)
            except KshotError as exc:
                exc.args = (f"{who}: {exc}",)
                raise
        try:
            network = build_module(path, options, spec, who=who)
        except OptionError as exc:
            exc.args = (f"{exc}{hint(path)}",)
            raise
        plain_options = {name: plain(self.ledger, value, name) for name, value in options.items()}
        how = Built(
            group="modules",
            name=path,
            options={name: value for name, (value, _) in plain_options.items()},
            distribution="",
            version="",
            obstacles=tuple(name for _, names in plain_options.values() for name in names),
            identity={"name": path, **{name: value for name, (value, _) in plain_options.items()}},
            given=dict(options),
        )
        remember(self.ledger, network, how)
        return network

    def _how(self, plugin: Plugin, values: Mapping[str, Any], seed: int | None, paths: frozenset[str]) -> Built:
        """Return the record of how a component was built; ``paths`` are the names of options that are paths."""
        lasting = {name: _from_anywhere(value) if name in paths else value for name, value in values.items()}
        options = {name: plain(self.ledger, value, name) for name, value in lasting.items()}
        return Built(
            group=plugin.group,
            name=plugin.name,
            options={name: value for name, (value, _) in options.items()},
            distribution=plugin.distribution,
            version=plugin.version,
            obstacles=tuple(name for _, names in options.values() for name in names),
            seed=seed,
            identity={"name": plugin.name, **self._identities(lasting, options, paths)},
            given=lasting,
        )

    def _identities(
        self, values: Mapping[str, Any], options: Mapping[str, tuple[Any, Any]], paths: frozenset[str]
    ) -> dict[str, Any]:
        """Return the plain options that are not paths; a component among them by its own identity."""
        nested = {name: recall(self.ledger, value) for name, value in values.items() if name not in paths}
        return {name: options[name][0] if how is None else dict(how.identity) for name, how in nested.items()}

    def rebuild(self, component: object, spec: TaskSpec | None, changed: Mapping[str, Any]) -> Any:
        """Build a component like this one, with some options changed; see ``Registry.rebuild``."""
        how = recall(self.ledger, component)
        if how is None:
            raise OptionError(
                f"rebuild: got a {type(component).__name__} that was not built by name, which can't be built again "
                "with other options; build it with kshot.learner(name, ...) or register its class"
            )
        if how.group == "learners" and spec is None:
            raise OptionError(f"rebuild: got no spec for learner {how.name!r}, expected the spec of the tasks")
        options = overlay({name: self._again(value) for name, value in how.given.items()}, changed)
        return self.build(how.group, how.name, options, spec=spec, seed=how.seed)

    def _again(self, value: Any) -> Any:
        """Return the name and options of a component that was built by name, a copy of a module, else ``value``."""
        if (how := recall(self.ledger, value)) is not None:
            return {"name": how.name, **{name: self._again(given) for name, given in how.given.items()}}
        return copy.deepcopy(value) if hasattr(value, "state_dict") else value


def _from_anywhere(value: Any) -> Any:
    """Make existing paths absolute, also within a mapping or list, as a run may be used from another folder."""
    if isinstance(value, Mapping):
        return {key: _from_anywhere(item) for key, item in value.items()}
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return type(value)(_from_anywhere(item) for item in value)
    if isinstance(value, str | Path) and not Path(value).is_absolute() and Path(value).exists():
        return type(value)(Path(value).absolute())
    return value


def overlay(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options ``under``, replaced by those of ``over``, nested ones too.

    If ``over`` names another plugin, nothing of ``under`` is kept. The key ``""`` stands for ``"name"``, as flags give
    it.

    Example:
        >>> overlay({"way": 5, "inner": {"name": "maml", "steps": 1}}, {"inner": {"steps": 3}})
        {'way': 5, 'inner': {'name': 'maml', 'steps': 3}}
    """
    over = {("name" if key == "" else key): value for key, value in over.items()}
    if str(over.get("name", under.get("name"))) != str(under.get("name")):
        return over
    laid = dict(under)
    for key, new in over.items():
        old = under.get(key)
        laid[key] = overlay(old, new) if isinstance(old, Mapping) and isinstance(new, Mapping) else new
    return laid


# -------------------- options that are components


def _nested(
    plugin: Plugin, known: tuple[Option, ...], options: Mapping[str, Any]
) -> dict[str, tuple[str, str, dict[str, Any]]]:
    """Return {option: (group, name, options)} of the components among the options, which must be built first."""
    components = {}
    for option in known:
        # The type as text, without module names: "kshot.Learner | None" gives "Learner" and "None".
        words = re.sub(r"\b\w+\.(?=\w)", "", option.type).split(" | ")
        group = next((_NESTED[word] for word in words if word in _NESTED), None)
        if group is not None:
            names = asked(plugin.who, option, options.get(option.name, option.default))
            if names is not None:
                components[option.name] = (group, *names)
    return components


# -------------------- calling a factory


def _call(plugin: Plugin, factory: Factory, *args: Any, **options: Any) -> Any:
    """Call a factory, and return its component if it has the members that its group requires."""
    try:
        component = factory(*args, **options)
    except Unavailable as exc:
        raise Unavailable(f"{plugin.who} is unavailable: {exc}") from exc
    except Exception as exc:
        if _is_out_of_memory(exc):
            given = ", ".join(f"{name}={shown(value)}" for name, value in options.items())
            raise OptionError(
                f"{plugin.who}: got options that need more memory than there is ({given}), expected smaller ones"
            ) from exc
        if isinstance(exc, OSError):  # a path of its options is too long, or in a folder that can't be read
            path = "" if exc.filename is None else f" {shown(exc.filename)}"
            raise DataError(
                f"{plugin.who}: got a path{path} that can't be used ({exc.strerror or exc}), expected a readable file "
                "or folder; correct the option"
            ) from exc
        exc.add_note(f"while building {plugin.who}")
        raise
    missing = [member for member in MEMBERS.get(plugin.group, ()) if not hasattr(component, member)]
    if missing:
        raise PluginError(
            f"{plugin.who}: got a {type(component).__name__} from its factory, which has no "
            f"{' and no '.join(missing)}; expected {A[plugin.group]}"
        )
    return component


def _is_out_of_memory(error: Exception) -> bool:
    """Return whether memory was refused, or a size is beyond what torch can count."""
    texts = ("not enough memory", "can't allocate memory", "out of memory", "Storage size calculation overflowed")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in texts)
    )


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Initialise parameters from ``seed`` inside the block, and restore the random state afterwards."""
    import torch

    # Seed the CPU generator alone: torch.manual_seed would also reseed accelerators, which fork_rng(devices=[]) does
    # not restore. Parameters are initialised on the CPU and placed afterwards.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _check_fit(plugin: Plugin, factory: Factory, spec: Any) -> None:
    """Raise MisfitError if the needs that the class declares do not fit the spec, and OptionError if there is none.

    Needs that only an instance can declare are checked later, by ``kshot.check``.
    """
    from kshot.spec import TaskSpec

    if not isinstance(spec, TaskSpec):
        advice = "give their spec, tasks.spec" if hasattr(spec, "spec") else "give that of your tasks, tasks.spec"
        raise OptionError(f"{plugin.who}: got {type(spec).__name__}, expected a kshot.TaskSpec; {advice}")
    needs = getattr(factory, "needs", None)
    if needs is None or isinstance(needs, property):
        return
    from kshot.checks import mismatches

    if reasons := mismatches(needs, spec):
        raise MisfitError(f"{plugin.who} does not fit these tasks: {'; '.join(reasons)}")
