"""Read a configuration: a TOML recipe, and the options of Python or the command line that override it."""

from __future__ import annotations

import contextlib
import copy
import datetime
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from attrs import field, frozen

from kshot._engine.attack import Attack
from kshot._engine.optimizer import Outer
from kshot.errors import KshotError, OptionError
from kshot.randomness import as_seed
from kshot.registry.building import overlay
from kshot.registry.conversion import did_you_mean, shown
from kshot.registry.options import validate
from kshot.registry.ranges import Count, CountOrZero, Positive

SECTIONS = ("learner", "tasks", "training", "optimizer", "engine", "backend", "evaluate", "hook")
"""Tables of a recipe, and sections of the flags ``--section.name=value``."""

NAMED = ("learner", "tasks", "optimizer", "backend")
"""Sections that may be given as a name only: ``learner = "protonet"``."""

ABOUT = ("title", "paper", "published", "notes")
"""Keys of a recipe that document it and change nothing."""

PLAIN = ("seed", "learner_seed", "run", "init_from", "hooks", "test")

Table = dict[str, Any]

_LARGEST = 1 << 20  # bytes of a recipe
_DEEPEST = 32  # levels of tables and lists within each other


@frozen
class EngineOptions:
    """Declare the options of ``[engine]``: those of ``kshot.Engine`` and of its ``train``, with the same defaults.

    Args:
        meta_batch: tasks per outer step (B); by default the learner's own.
        chunk: largest number of tasks computed at once.
        iterations: number of outer steps; by default the learner's own.
        split: the split to train on.
        validate_every: outer steps between validations; the best validated parameters are kept.
        validation_episodes: number of episodes of each validation.
        validation_split: the split to validate on.
        patience: stop after this many validations in a row that were not better.
        stop_loss: stop when the loss was below this number, and no prediction wrong, in 50 iterations in a row.
        checkpoint_every: outer steps between checkpoints.
        checkpoint_seconds: time after which a checkpoint is written in any case; none for no limit.
        keep: number of newest checkpoints to keep.
    """

    meta_batch: Count | None = None
    chunk: Count | None = None
    iterations: CountOrZero | None = None
    split: str = "train"
    validate_every: Count | None = None
    validation_episodes: Count = 200
    validation_split: str = "val"
    patience: Count | None = None
    stop_loss: Positive | None = None
    checkpoint_every: Count = 500
    checkpoint_seconds: Positive | None = 60.0
    keep: Count = 2


@frozen
class EvaluateOptions:
    """Declare the options of ``[evaluate]``: those of ``Engine.evaluate``, with the same defaults, and ``baselines``.

    Args:
        episodes: number of episodes.
        split: the split to evaluate on.
        batch: number of episodes computed at once; by default what fits the caches.
        disjoint: whether no example may be in two episodes; there are fewer episodes if the examples are too few.
        attack: an adversarial attack: the fields of ``kshot.Attack``. Its ``on`` may also be ``each``: then there are
            four tests on the same episodes, with an attack of nothing, of the support, of the queries and of both.
        baselines: whether simple methods are tested beside a learner that was trained on a folder of images or sounds.
    """

    episodes: Count = 600
    split: str = "test"
    batch: Count | None = None
    disjoint: bool = False
    attack: Mapping[str, Any] | str | None = None
    baselines: bool = True


@frozen
class Config:
    """Store what a user asked for, without defaults. Values of flags are ``Raw`` text, read later by the option's type.

    Attributes:
        learner, tasks, backend: ``{"name": ..., **options}``.
        training: options of the tasks, if they differ while training.
        optimizer, engine, evaluate: their options.
        hook: options of each extra hook, by name.
        test: for each test the options of its tasks, and under ``learner`` the options of the learner in it.
        seed: seed of the learner's initialisation and of training.
        learner_seed: seed of the initialisation, if it differs.
        run: the folder to write to.
        init_from: a run or checkpoint to start from.
        about: title, paper and the like of a recipe.
    """

    learner: Table = field(factory=dict)
    tasks: Table = field(factory=dict)
    training: Table = field(factory=dict)
    optimizer: Table = field(factory=dict)
    engine: Table = field(factory=dict)
    backend: Table = field(factory=dict)
    evaluate: Table = field(factory=dict)
    hook: dict[str, Table] = field(factory=dict)
    test: tuple[Table, ...] = ()
    seed: int = 0
    learner_seed: int | None = None
    run: str | None = None
    init_from: str | None = None
    about: Table = field(factory=dict)


def read_recipe(path: str | Path) -> Table:
    """Read a recipe as it is written; a byte order mark is skipped.

    Raises:
        OptionError: it can't be read, is no regular file, is too large or is not TOML.
    """
    file = Path(path)
    try:
        # A pipe would be waited for, and a device read until the memory is full.
        if file.exists() and not file.is_file() and not file.is_dir():
            raise OptionError(
                f"recipe {path}: got a pipe or a device, expected a regular file; write the recipe to one"
            )
        if (size := file.stat().st_size) > _LARGEST:
            raise OptionError(f"recipe {path}: got {size} bytes, expected at most {_LARGEST}; give another file")
        return tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise OptionError(f"recipe {path} can't be read: {error.strerror or error}") from error
    except RecursionError:
        raise OptionError(f"recipe {path}: got tables or lists nested too deeply, expected a few levels") from None
    except ValueError as error:  # not TOML, not UTF-8, or a number of too many digits
        raise OptionError(f"recipe {path} is not TOML: {error}") from error


def as_tables(recipe: Mapping[str, Any], where: str) -> Table:
    """Return a recipe with every section as a table, checked key by key.

    Args:
        where: what the keys are of, for messages: ``recipe FILE``, ``train``.

    Raises:
        OptionError: an unknown key, or a value of the wrong kind; lists them all.
    """
    _check_depth(recipe, where, _DEEPEST)
    known = (*SECTIONS, *PLAIN, *ABOUT)
    wrong = [f"{key}: unknown key{did_you_mean(key, known)}" for key in recipe if key not in known]
    tables: Table = {}
    for key, value in recipe.items():
        if key in NAMED and isinstance(value, str):
            tables[key] = {"name": value}
        elif key in SECTIONS:
            tables[key] = _copied(value)
            if not isinstance(value, Mapping):
                wrong.append(f"{key}: got {shown(value)}, expected a table [{key}]")
        else:
            tables[key] = value
    wrong += [
        f"{key}: got a date or a time, expected numbers, text and lists"
        for key in SECTIONS
        if _has_date(tables.get(key))
    ]
    wrong += _wrong_plain_keys(tables)
    if not wrong:
        hooks, names = tables.get("hook", {}), tables.get("hooks", [])
        wrong += [
            f"hook.{name}: got {shown(hooks[name])}, expected a table" for name in hooks if not _is_table(hooks[name])
        ]
        wrong += [f"hooks: got {shown(name)}, expected names" for name in names if not isinstance(name, str)]
    if wrong:
        raise OptionError(f"{where}: {'; '.join(wrong)}\nvalid keys: {', '.join(known)}")
    return tables


def _wrong_plain_keys(tables: Table) -> list[str]:
    """Return what is wrong with the keys that are no sections."""
    wrong = []
    path = (str, "a path, in which {seed} stands for the seed")
    expected: dict[str, tuple[type | tuple[type, ...], str]] = {
        "seed": (int, "a number"),
        "learner_seed": (int, "a number"),
        "run": path,
        "init_from": path,
        "hooks": ((list, tuple), "a list of names"),
    }
    for key, (kind, text) in expected.items():
        if key in tables and (not isinstance(tables[key], kind) or isinstance(tables[key], bool)):
            wrong.append(f"{key}: got {shown(tables[key])}, expected {text}")
    tests = tables.get("test", [])
    if not isinstance(tests, list | tuple) or not all(_is_table(test) for test in tests):
        return [*wrong, f"test: got {shown(tests)}, expected tables [[test]], one for each test"]
    for own in (test.get("learner", {}) for test in tests):
        if not _is_table(own) or "name" in own:
            wrong.append(
                f"test.learner: got {shown(own)}, expected a table of options of the trained learner, without a name"
            )
    return wrong


def _check_depth(value: Any, where: str, levels: int) -> None:
    """Raise OptionError if tables and lists are nested deeper than so many levels, as one that contains itself is."""
    if levels < 0:
        raise OptionError(f"{where}: got tables or lists nested too deeply, expected at most {_DEEPEST} levels")
    for inner in value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ():
        _check_depth(inner, where, levels - 1)


def _has_date(value: Any) -> bool:
    """Return whether a value is or has a date or a time, which TOML reads and no option takes."""
    if isinstance(value, Mapping | list | tuple):
        return any(map(_has_date, value.values() if isinstance(value, Mapping) else value))
    return isinstance(value, datetime.date | datetime.time)


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping)


def _copied(value: Any) -> Any:
    """Return nested tables and lists copied; objects among the options stay the same objects."""
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    return copy.copy(value) if isinstance(value, list) else value


def configure(tables: Mapping[str, Any], *, hooks: Iterable[str] = ()) -> Config:
    """Return the configuration that checked tables describe.

    Args:
        tables: from ``as_tables``; what the user lays over a recipe is in them already.
        hooks: names of more hooks.

    Raises:
        OptionError: no learner or tasks are named, or an option of the engine or the evaluation is wrong.
    """
    optimizer = validate(Outer, tables.get("optimizer", {}), who="optimizer")
    for section in ("learner", "tasks"):
        if "name" not in tables.get(section, {}):
            raise OptionError(f"no {section} named; expected LEARNER TASKS, or --recipe FILE.toml; see kshot list")
    hooks_of = tables.get("hook", {})
    if wrong := [name for name, options in hooks_of.items() if not _is_table(options)]:  # of flags
        raise OptionError(
            f"hook.{wrong[0]}: got {shown(hooks_of[wrong[0]])}, expected options of the hook, "
            f"--hook.{wrong[0]}.NAME=VALUE"
        )
    own = {name: dict(options) for name, options in hooks_of.items()}
    wanted = [*tables.get("hooks", []), *hooks]
    seed, own_seed = as_seed(tables.get("seed", 0)), tables.get("learner_seed")
    return Config(
        **{name: tables.get(name, {}) for name in SECTIONS if name not in ("hook", "optimizer", "engine", "evaluate")},
        optimizer=optimizer,
        engine=validate(EngineOptions, tables.get("engine", {}), who="engine"),
        evaluate=evaluate_options(tables.get("evaluate", {})),
        hook={name: own.get(name, {}) for name in dict.fromkeys([*wanted, *own])},
        test=tuple(tables.get("test", ())),
        seed=seed,
        learner_seed=None if own_seed is None else as_seed(own_seed, "learner_seed"),
        run=_of_seed(tables.get("run"), seed),
        init_from=_of_seed(tables.get("init_from"), seed),
        about={key: tables[key] for key in ABOUT if key in tables},
    )


def evaluate_options(given: Mapping[str, Any]) -> Table:
    """Return the options of ``[evaluate]``, checked and converted.

    Raises:
        OptionError: an option is unknown or has a wrong value.
    """
    options = validate(EvaluateOptions, given, who="evaluate")
    attacks_of(options)
    return options


def attacks_of(evaluate: Mapping[str, Any]) -> tuple[Attack | None, ...]:
    """Return the attack of each evaluation of a test; None for an evaluation without an attack.

    Args:
        evaluate: options of ``[evaluate]``.

    Raises:
        OptionError: an option of the attack is unknown or has a wrong value.
    """
    attack = evaluate.get("attack")
    if isinstance(attack, Mapping) and attack.get("on") == "each":
        return (None, *(Attack.of({**attack, "on": on}) for on in ("support", "query", "both")))
    return (Attack.of(attack),)


@contextlib.contextmanager
def naming(recipe: str | Path | None) -> Iterator[None]:
    """Say in errors inside the block that options may be those of a recipe."""
    try:
        yield
    except KshotError as error:
        if recipe is not None and str(recipe) not in str(error):
            error.add_note(f"with the options of recipe {recipe}")
        raise


def layered(recipe: str | Path | None, given: Mapping[str, Any], *, where: str) -> Table:
    """Return the tables of a recipe with the given ones laid over them, option by option.

    A bare name (``optimizer="sgd"``) changes the name alone; a table with another name starts from nothing.

    Raises:
        OptionError: the recipe can't be read, or a key or value is wrong.
    """
    under = {} if recipe is None else as_tables(read_recipe(recipe), f"recipe {recipe}")
    over = as_tables({key: value for key, value in given.items() if value is not None}, where)
    tables = dict(under)
    for key, value in over.items():
        if key not in SECTIONS or not isinstance(under.get(key), Mapping):
            tables[key] = value
        elif isinstance(given[key], str):
            tables[key] = {**under[key], "name": given[key]}
        else:
            tables[key] = overlay(under[key], value)
    return tables


def _of_seed(path: str | None, seed: int) -> str | None:
    """Return a path in which ``{seed}`` stands for the seed, so that one recipe serves all seeds."""
    return None if path is None else path.replace("{seed}", str(seed))
