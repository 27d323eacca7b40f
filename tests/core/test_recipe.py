"""Flags and recipes become one configuration."""

from __future__ import annotations

import inspect
import os
import re
from pathlib import Path
from typing import Any

import pytest
from attrs import fields

from kshot._engine.engine import Engine
from kshot.cli.flags import configured, split_flags
from kshot.errors import OptionError
from kshot.registry.building import overlay
from kshot.runs.recipe import EngineOptions, EvaluateOptions, layered

NAMES = {"learner": "a", "tasks": "b"}


def made(*flags: tuple[str, str], recipe: Path | None = None, **given: Any) -> Any:
    return configured(recipe, flags, **{**given.pop("names", NAMES), **given})


def recipe(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_flags_value_comes_after_an_equals_sign_or_as_the_next_word() -> None:
    """Both forms are habits; a negative number and a value with '=' in it must survive."""
    flags, rest = split_flags(["x", "--tasks.way=5", "--learner.lr", "-1", "--seed", "3", "--hook.h.o=a=b", "y"])
    assert flags == [("tasks.way", "5"), ("learner.lr", "-1"), ("hook.h.o", "a=b")]
    assert rest == ["x", "--seed", "3", "y"]


def test_what_follows_two_dashes_is_no_flag() -> None:
    """The shell's convention."""
    assert split_flags(["--", "--tasks.way=5"]) == ([], ["--", "--tasks.way=5"])


@pytest.mark.parametrize("args", [["--tasks.way"], ["--tasks.way", "--seed"]])
def test_a_flag_without_a_value_is_refused(args: list[str]) -> None:
    """Else the next flag would silently become its value."""
    with pytest.raises(OptionError, match=r"--tasks\.way: got no value, expected --tasks\.way=VALUE"):
        split_flags(args)


def test_flags_of_a_nested_component_become_its_name_and_options() -> None:
    """A learner in a learner is asked for by name, whichever flag comes first."""
    expected = {"name": "a", "inner": {"name": "reptile", "lr": "0.1"}}
    assert made(("learner.inner", "reptile"), ("learner.inner.lr", "0.1")).learner == expected
    assert made(("learner.inner.lr", "0.1"), ("learner.inner", "reptile")).learner == expected


def test_engine_values_are_read_by_type() -> None:
    """``5`` is a number, ``none`` is None."""
    config = made(("engine.meta_batch", "5"), ("engine.patience", "none"), ("evaluate.batch", "7"), iterations=3)
    assert config.engine == {"meta_batch": 5, "patience": None, "iterations": 3}
    assert config.evaluate == {"batch": 7}


def test_a_flag_wins_over_the_recipe_and_leaves_its_other_values(tmp_path: Path) -> None:
    """A recipe is a starting point."""
    path = recipe(
        tmp_path,
        'learner = "a"\ntasks = {name = "b", way = 5, shot = 1}\nseed = 4\nrun = "here"\nhooks = ["p"]\n'
        "[engine]\niterations = 10\nmeta_batch = 2\n[hook.q]\nx = 1\n[learner_is_not_here]\n",
    )
    path.write_text(path.read_text().replace("[learner_is_not_here]\n", ""))
    config = made(("tasks.shot", "7"), recipe=path, names={}, iterations=3, hooks="r", seed=5)
    assert config.tasks == {"name": "b", "way": 5, "shot": "7"}
    assert config.engine == {"iterations": 3, "meta_batch": 2}
    assert (config.seed, config.run) == (5, "here")
    assert config.hook == {"p": {}, "r": {}, "q": {"x": 1}}


def test_each_test_of_a_recipe_and_its_documentation_are_kept(tmp_path: Path) -> None:
    """One training, several figures; the published ones stand beside them."""
    text = 'title = "t"\n[published]\n"5w1s" = 98.8\n[[test]]\nshot = 1\n[[test]]\nshot = 5\n'
    config = made(recipe=recipe(tmp_path, text))
    assert config.test == ({"shot": 1}, {"shot": 5})
    assert config.about == {"title": "t", "published": {"5w1s": 98.8}}


def test_one_recipe_names_the_runs_of_all_seeds(tmp_path: Path) -> None:
    """A second stage begins from the first stage of the same seed, whether it is in the file or a flag."""
    text = 'seed = 4\nrun = "runs/two-{seed}"\ninit_from = "runs/one-{seed}"\n'
    path = recipe(tmp_path, text)
    config = made(recipe=path)
    assert (config.run, config.init_from) == ("runs/two-4", "runs/one-4")
    config = made(recipe=path, seed=5, init_from="elsewhere")
    assert (config.run, config.init_from) == ("runs/two-5", "elsewhere")
    assert made().init_from is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("leraner = 'a'", "leraner: unknown key; did you mean 'learner'?"),
        ("engine = 3", "engine: got 3, expected a table [engine]"),
        ("seed = true", "seed: got True, expected a number"),
        ("test = 3", "test: got 3, expected tables [[test]]"),
        (
            "[[test]]\nlearner = 'a'",
            "test.learner: got 'a', expected a table of options of the trained learner, without a name",
        ),
        (
            "[[test]]\nlearner = {name = 'a'}",
            "test.learner: got {'name': 'a'}, expected a table of options of the trained learner",
        ),
        ("init_from = 3", "init_from: got 3, expected a path, in which {seed} stands for the seed"),
        ("hooks = 'a'", "hooks: got 'a', expected a list of names"),
        ("hooks = [1]", "hooks: got 1, expected names"),
        ("hook = {a = 1}", "hook.a: got 1, expected a table"),
        ("a = = 1", "is not TOML"),
        ("[tasks]\nof = 12:00:00", "tasks: got a date or a time, expected numbers, text and lists"),
        ("[[test]]\nlearner = {a = 1}\n[learner]\nx = [2020-01-01]", "learner: got a date or a time, expected"),
        ("[engine]\na" + ".a" * 5000 + " = 1", "got tables or lists nested too deeply, expected"),
        ("[engine]\nx = " + "[" * 100 + "]" * 100, "got tables or lists nested too deeply, expected at most 32 levels"),
        ("[engine]\niteration = 3", "iteration: unknown option; did you mean 'iterations'?"),
    ],
)
def test_a_wrong_recipe_is_refused_with_what_was_expected(tmp_path: Path, text: str, message: str) -> None:
    """A misspelt key that is ignored is an experiment that was not run."""
    with pytest.raises(OptionError, match=re.escape(message)):
        made(recipe=recipe(tmp_path, text))


def test_a_recipe_that_is_no_usual_file_is_refused(tmp_path: Path) -> None:
    """A pipe would be waited for, and a device or a huge file read until the memory is full."""
    os.mkfifo(tmp_path / "pipe.toml")
    (tmp_path / "zero.toml").symlink_to("/dev/zero")
    for name in ("pipe.toml", "zero.toml"):
        with pytest.raises(OptionError, match=rf"{name}: got a pipe or a device, expected a regular file"):
            made(recipe=tmp_path / name)
    with pytest.raises(OptionError, match=r"recipe\.toml: got 1048580 bytes, expected at most 1048576"):
        made(recipe=recipe(tmp_path, "#" * ((1 << 20) + 4)))


def test_a_table_that_contains_itself_is_refused() -> None:
    """Options of Python are checked as those of a recipe are."""
    options: dict[str, Any] = {"name": "a"}
    options["inner"] = [options, options]
    with pytest.raises(OptionError, match=r"^train: got tables or lists nested too deeply"):
        made(learner=options)


@pytest.mark.parametrize("flag", ["hook.x", "hook.plots"])
def test_a_flag_that_gives_a_hook_a_value_is_refused(flag: str) -> None:
    """A hook has options, which have values."""
    with pytest.raises(OptionError, match=rf"^{flag}: got '5', expected options of the hook, --{flag}\.NAME=VALUE"):
        made((flag, "5"))


def test_every_wrong_key_of_a_recipe_is_named_at_once(tmp_path: Path) -> None:
    """One round of corrections."""
    with pytest.raises(OptionError, match=r"foo: unknown key.*bar: unknown key.*\nvalid keys: learner"):
        made(recipe=recipe(tmp_path, "foo = 1\nbar = 2"))


def test_a_missing_recipe_is_refused(tmp_path: Path) -> None:
    """With its name."""
    with pytest.raises(OptionError, match=r"nothing\.toml can't be read: No such file"):
        made(recipe=tmp_path / "nothing.toml")


def test_an_unknown_section_lists_those_there_are() -> None:
    """A typing error before the dot is as likely as after it."""
    with pytest.raises(
        OptionError, match=r"--lerner\.x: got section 'lerner', expected one of.*--engine.*; did you mean 'learner'"
    ):
        made(("lerner.x", "1"))


def test_learner_and_tasks_must_be_named() -> None:
    """The message says both ways."""
    with pytest.raises(OptionError, match="no tasks named; expected LEARNER TASKS"):
        made(names={"learner": "a"})


def test_an_overlay_goes_deep_and_another_name_begins_from_nothing() -> None:
    """The options of one plugin mean nothing to another."""
    under = {"name": "x", "way": 5, "inner": {"name": "i", "a": 1, "b": 2}}
    assert overlay(under, {"inner": {"b": 3}}) == {"name": "x", "way": 5, "inner": {"name": "i", "a": 1, "b": 3}}
    assert overlay(under, {"name": "y", "shot": 1}) == {"name": "y", "shot": 1}
    assert under["inner"] == {"name": "i", "a": 1, "b": 2}


def test_the_engines_own_defaults_are_those_the_command_line_shows() -> None:
    """They are written twice, for messages and help; they must not drift apart."""
    engine = {
        **inspect.signature(Engine.__init__).parameters,
        **inspect.signature(Engine.train).parameters,
    }
    for options, parameters in (
        (EngineOptions, engine),
        (EvaluateOptions, dict(inspect.signature(Engine.evaluate).parameters)),
    ):
        for option in fields(options):
            if option.name == "baselines":  # of runs only
                continue
            assert parameters[option.name].default == option.default, option.name


def test_a_bare_name_keeps_the_options_of_a_recipe_and_a_table_with_another_name_does_not(tmp_path: Path) -> None:
    """``optimizer="sgd"`` changes the name alone; ``{"name": "sgd"}`` begins from nothing."""
    path = recipe(tmp_path, 'tasks = "toy"\n[optimizer]\nname = "adam"\nlr = 0.5\n')
    assert layered(path, {"optimizer": "sgd"}, where="train")["optimizer"] == {"name": "sgd", "lr": 0.5}
    assert layered(path, {"optimizer": {"name": "sgd"}}, where="train")["optimizer"] == {"name": "sgd"}
    assert layered(path, {"optimizer": {"lr": 0.1}}, where="train")["optimizer"] == {"name": "adam", "lr": 0.1}
    assert layered(path, {"tasks": None}, where="train")["tasks"] == {"name": "toy"}
