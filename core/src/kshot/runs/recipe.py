"""Flags and a TOML recipe to one plain configuration: the same names in both, a flag wins over the file."""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import field, frozen

from kshot.errors import OptionError
from kshot.registry.options import Raw, did_you_mean, parse_literal, validate

SECTIONS = ("learner", "tasks", "training", "optimizer", "engine", "backend", "evaluate", "hook")
"""Tables of a recipe, and what may stand before the dot of a flag."""

NAMED = ("learner", "tasks", "optimizer", "backend")
"""Sections that may be a bare name: ``learner = "protonet"``."""

ABOUT = ("title", "paper", "published", "notes")
"""Keys of a recipe that document it and change nothing."""

PLAIN = ("seed", "run", "init_from", "hooks", "test")

Table = dict[str, Any]


@frozen
class EngineOptions:
    """What ``[engine]`` takes: options of ``kshot.Engine`` and of its ``train``, whose defaults these are.

    Args:
        meta_batch: tasks an outer step; the learner's own where left out.
        chunk: the most tasks computed at once.
        iterations: outer steps; the learner's own where left out.
        split: what to train on.
        validate_every: outer steps between validations; the best validated parameters are kept.
        validation_episodes: episodes of each validation.
        validation_split: what to validate on.
        patience: stop after so many validations in a row without a better one.
        checkpoint_every: outer steps between checkpoints.
        keep: how many of the newest checkpoints stay.
    """

    meta_batch: int | None = None
    chunk: int | None = None
    iterations: int | None = None
    split: str = "train"
    validate_every: int | None = None
    validation_episodes: int = 200
    validation_split: str = "val"
    patience: int | None = None
    checkpoint_every: int = 500
    keep: int = 2


@frozen
class EvaluateOptions:
    """What ``[evaluate]`` takes: options of ``Engine.evaluate``, whose defaults these are.

    Args:
        episodes: how many.
        split: which.
        batch: episodes at once; what fits the caches where left out.
    """

    episodes: int = 600
    split: str = "test"
    batch: int | None = None


@frozen
class Config:
    """What a user asked for, nothing filled in. Text of flags is ``Raw``, to be read by the option's type."""

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
    run: str | None = None
    init_from: str | None = None
    about: Table = field(factory=dict)


def read_recipe(path: Path) -> Table:
    """A recipe as it is written.

    Raises:
        OptionError: it is not there or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(f"recipe {path} can't be read: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise OptionError(f"recipe {path} is not TOML: {error}") from error


def check_recipe(recipe: Mapping[str, Any], where: str) -> Table:
    """The recipe with every section a table, checked key by key.

    Raises:
        OptionError: an unknown key, or a value of the wrong kind.
    """
    known = (*SECTIONS, *PLAIN, *ABOUT)
    wrong = [f"{key}: unknown key{did_you_mean(key, known)}" for key in recipe if key not in known]
    made: Table = {}
    for key, value in recipe.items():
        if key in NAMED and isinstance(value, str):
            made[key] = {"name": value}
        elif key in SECTIONS:
            made[key] = copy.deepcopy(value)
            if not isinstance(value, Mapping):
                wrong.append(f"{key}: expected a table [{key}], got {value!r}")
        else:
            made[key] = value
    path = (str, "a path, in which {seed} stands for the seed")
    expected = {"seed": (int, "a number"), "run": path, "init_from": path, "hooks": (list, "a list of names")}
    for key, (kind, text) in expected.items():
        if key in made and (not isinstance(made[key], kind) or isinstance(made[key], bool)):
            wrong.append(f"{key}: expected {text}, got {made[key]!r}")
    tests = made.get("test", [])
    if not isinstance(tests, list) or not all(isinstance(test, Mapping) for test in tests):
        wrong.append("test: expected tables [[test]], one for each test")
    elif not all(isinstance(own, Mapping) and "name" not in own for own in (test.get("learner", {}) for test in tests)):
        wrong.append("test.learner: expected a table of options of the trained learner, without a name")
    if not wrong:
        tables, names = made.get("hook", {}), made.get("hooks", [])
        wrong += [f"hook.{name}: expected a table" for name in tables if not isinstance(tables[name], dict)]
        wrong += [f"hooks: expected names, got {name!r}" for name in names if not isinstance(name, str)]
    if wrong:
        raise OptionError(f"{where}: {'; '.join(wrong)}\nvalid keys: {', '.join(known)}")
    return made


def put_flags(config: Table, flags: Sequence[tuple[str, str]], sections: Collection[str] = SECTIONS) -> None:
    """Put ``section.name`` and ``section.name.inner`` into the nested tables of ``config``.

    Raises:
        OptionError: the section is unknown.
    """
    for path, value in flags:
        section, *parts = path.split(".")
        if section not in sections:
            valid = ", ".join(f"--{name}.NAME" for name in sections)
            hint = did_you_mean(section, sections)
            raise OptionError(f"--{path}: there is no {section!r} here{hint} (there are {valid})")
        _put(config, [section, *parts], Raw(value))


def _put(table: Table, parts: Sequence[str], value: Raw) -> None:
    *heads, last = parts
    for head in heads:
        inner = table.get(head)
        if not isinstance(inner, dict):
            # A bare name and its options: inner = "reptile", then inner.inner_lr.
            inner = {} if inner is None else {"name": inner}
            table[head] = inner
        table = inner
    old = table.get(last)
    if isinstance(old, dict) and not isinstance(parse_literal(value), dict):
        old["name"] = value
    else:
        table[last] = value


def overlay(under: Mapping[str, Any], over: Mapping[str, Any]) -> Table:
    """The options of ``under`` with those of ``over``, nested ones too; another name begins from nothing."""
    if str(over.get("name", under.get("name"))) != str(under.get("name")):
        return dict(over)
    made = dict(under)
    for key, value in over.items():
        old = made.get(key)
        made[key] = overlay(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return made


def configure(
    recipe: Path | None,
    flags: Sequence[tuple[str, str]],
    *,
    names: Mapping[str, str | None],
    hooks: str = "",
    seed: int | None = None,
    run: str | None = None,
    init_from: str | None = None,
    iterations: int | None = None,
) -> Config:
    """One configuration of a recipe, section flags and plain flags.

    Args:
        names: by section: learner and tasks as arguments, ``--backend`` and ``--optimizer``.

    Raises:
        OptionError: anything unknown or ill-typed, or no learner or tasks named.
    """
    raw = check_recipe(read_recipe(recipe), f"recipe {recipe}") if recipe else {}
    for section, name in names.items():
        if name is not None:
            raw.setdefault(section, {})["name"] = name
    put_flags(raw, flags)
    if iterations is not None:
        raw.setdefault("engine", {})["iterations"] = iterations
    for section in ("learner", "tasks"):
        if "name" not in raw.get(section, {}):
            raise OptionError(f"no {section} named; expected LEARNER TASKS, or --recipe FILE.toml; see kshot list")
    own = {name: dict(options) for name, options in raw.get("hook", {}).items()}
    wanted = [*raw.get("hooks", []), *(name.strip() for name in hooks.split(",") if name.strip())]
    seed = int(raw.get("seed", 0)) if seed is None else seed
    return Config(
        **{name: raw.get(name, {}) for name in SECTIONS if name not in ("hook", "engine", "evaluate")},
        engine=validate(EngineOptions, raw.get("engine", {}), who="engine"),
        evaluate=validate(EvaluateOptions, raw.get("evaluate", {}), who="evaluate"),
        hook={name: own.get(name, {}) for name in dict.fromkeys([*wanted, *own])},
        test=tuple(raw.get("test", ())),
        seed=seed,
        run=_of_seed(run or raw.get("run"), seed),
        init_from=_of_seed(init_from or raw.get("init_from"), seed),
        about={key: raw[key] for key in ABOUT if key in raw},
    )


def _of_seed(path: str | None, seed: int) -> str | None:
    """A path in which ``{seed}`` stands for the seed, so that one recipe serves all seeds."""
    return None if path is None else path.replace("{seed}", str(seed))
