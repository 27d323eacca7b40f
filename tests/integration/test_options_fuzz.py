"""Every option of every component is given hostile values, in a recipe and on the command line, up to ``kshot check``.

Each is accepted, or refused by one message with the right exit code, before anything is computed or written.
"""

from __future__ import annotations

import random
import re
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from kshot import registry
from kshot.cli import main

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

INPUTS = {"options": (4, 210), "recipes": (2, 250)}
"""How many seeds each test has, and how many inputs for each seed."""

WORDS = (
    *("-1", "0", "1", "3", "-0.5", "0.5", "1e-320", "1e30", "1e400", "nan", "inf", "-inf", "true", "false", "none"),
    *(
        "99999999999999999999",
        "2147483648",
        "9007199254740993",
        "1_000",
        "0x10",
        "+5",
        " 5",
        "5 ",
        "\u0665",
        "\u00b2",
        "1e3",
    ),
    *(
        "",
        "''",
        '"x"',
        "x",
        "x y",
        "a.b:c",
        "os:system",
        "builtins:eval",
        "torch.nn:Linear",
        "cpu",
        "protonet",
        "toy",
        "{seed}",
    ),
    *(
        "[]",
        "[1]",
        "[1, 2]",
        "[2, 1]",
        "[-1, 5]",
        "[0.5, 0.5]",
        "[nan, 1]",
        "[[1]]",
        "[" * 300,
        "{}",
        "{a = 1}",
        "{name = 5}",
    ),
    *(
        "{name = 'toy'}",
        "{train = ['a']}",
        "1979-05-27",
        "12:00",
        "\x1b[2J",
        "\u202e",
        "x" * 5000,
        "a\nb",
        "a\tb",
        "/dev/null",
    ),
    *("/dev/zero", "missing/folder", ".", "\udcff", "#", "--x", "=", "a=b"),
)
"""What is given as the text of a flag; most of it is also TOML."""

TOML = (
    *(
        "-1",
        "0",
        "1",
        "3",
        "0.5",
        "-0.5",
        "1e400",
        "nan",
        "inf",
        "-inf",
        "true",
        "false",
        "99999999999999999999",
        '""',
        '"x"',
    ),
    *(
        '"os:system"',
        '"\\u001b[2J"',
        "[]",
        "[1, 2]",
        "[2, 1]",
        "[[1]]",
        '["a", 1]',
        "{}",
        "{a = 1}",
        "{name = 5}",
        "1979-05-27",
    ),
    *(
        "12:00:00",
        "0x10",
        "0b1",
        "1_000",
        '"' + "x" * 5000 + '"',
        "[" * 300 + "]" * 300,
        "{name = {name = {name = 1}}}",
        "[nan]",
    ),
)
"""What is written as a value in a recipe."""

TASKS = {
    "classification": "toy",
    "regression": "sinusoid",
    "sequence": "copy",
    "control": "navigation2d",
    "objective": "quadratics",
}
LEARNERS = {
    "classification": "protonet",
    "regression": "maml",
    "sequence": "ntm",
    "control": "maml-rl",
    "objective": "l2l",
}
OWN = {
    "gradient-agreement": {"inner": "maml"},
    "concept": {"meta": "maml"},
    "with-external": {"of": "toy", "source": "toy"},
    "imagefolder": {"root": "images", "way": 2, "query": 1, "split": "[0.34, 0.33, 0.33]"},
    "audiofolder": {"root": "sounds", "seconds": 0.1, "way": 2, "query": 1, "split": "[0.34, 0.33, 0.33]"},
    "textfolder": {"csv": "texts.csv", "size": 64, "way": 2, "query": 1, "split": "[0.34, 0.33, 0.33]"},
    "semantics": {"of": "toy", "table": "t.csv"},
}
LOUD = {"download"}
"""Options that are not given: kshot would ask the network."""

SLOW = {("audiofolder", "seconds")}
"""Options of which a large value is right, and takes as long as it says."""


def write_data() -> None:
    """Write small folders of images and sounds, a CSV file of texts, and a table of class vectors."""
    rng = np.random.default_rng(0)
    for c in range(6):
        for kind in ("images", "sounds"):
            Path(kind, f"c{c}").mkdir(parents=True)
        for i in range(3):
            Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)).save(f"images/c{c}/{i}.png")
            with wave.open(f"sounds/c{c}/{i}.wav", "wb") as file:
                file.setparams((1, 2, 8000, 800, "NONE", ""))
                file.writeframes(rng.integers(-999, 999, 800, np.int16).tobytes())
    Path("texts.csv").write_text("text,label\n" + "".join(f"text {i},c{i % 6}\n" for i in range(18)))
    Path("t.csv").write_text("name,x,y\na,1,2\nb,3,4\n")


def options() -> Iterator[tuple[str, str, str, str]]:
    """Yield a learner, tasks, the section of the component, and an option of it, for all components."""
    for plugin in registry.plugins():
        if plugin.state != "ok" or (plugin.builtin and plugin.group == "hooks"):
            continue
        for option in registry.info(plugin.name).options:
            if option.name in LOUD or (plugin.name, option.name) in SLOW:
                continue
            kind = plugin.kinds[0] if plugin.kinds else "classification"
            if plugin.group == "learners":
                views = {"semi-protonet": "semi-supervised", "concept": "with-external"}
                tasks = views.get(plugin.name, TASKS[kind])
                yield plugin.name, tasks, "learner", option.name
            elif plugin.group == "tasks":
                yield LEARNERS[kind], plugin.name, "tasks", option.name
            elif plugin.group == "memories":
                yield "ntm", "copy", f"learner.memory={plugin.name}", option.name
            else:
                section = "backend" if plugin.group == "backends" else f"hook.{plugin.name}"
                yield "protonet", "toy", f"{section}={plugin.name}", option.name
    for section, names in SHARED.items():
        for name in names:
            yield "protonet", "toy", section, name


SHARED = {
    "engine": (
        "meta_batch",
        "chunk",
        "iterations",
        "split",
        "validate_every",
        "validation_episodes",
        "validation_split",
        "patience",
        "checkpoint_every",
        "checkpoint_seconds",
        "keep",
        "unknown",
    ),
    "evaluate": ("episodes", "split", "batch"),
    "optimizer": ("name", "lr", "schedule", "every", "factor", "warmup", "clip", "weight_decay", "momentum"),
    "training": ("way", "shot", "query", "name"),
    "learner": ("name", "encoder.x", "unknown"),
    "tasks": ("name", "way.x"),
    "hook": ("x", "plots.x.y"),
    "nonsense": ("x",),
}
"""Options that are not of plugins."""


class Refused(Exception):
    """Raised if the command has refused an input."""


def checked(*args: str) -> str:
    """Call ``kshot check`` in this process, and return its output.

    Raises:
        Refused: the exit code is one of those that are documented for a wrong input.
    """
    done = CliRunner(env={"COLUMNS": "200"}).invoke(main, ["check", *args])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert "Traceback" not in done.output, done.output[-1500:]
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", done.output), (
        f"control characters in {done.output!r:.300}"
    )
    assert len(done.output) < 50_000, f"a message of {len(done.output)} characters: {done.output[:100]}"
    if done.exit_code in (2, 3, 4, 5, 6):
        assert done.stdout == ""
        if not done.stderr.startswith("Usage: "):
            assert re.search("^kshot: (?!warning)", done.stderr, re.MULTILINE), done.stderr[:300]
            assert re.search("got|can't|unknown|no |don't fit|not ", done.stderr), done.stderr[:300]
        raise Refused(done.stderr)
    assert done.exit_code == 0, f"exit code {done.exit_code}: {done.output[-600:]}"
    return done.stdout


def flags_of(learner: str, tasks: str, section: str) -> tuple[dict[str, Any], str]:
    """Return the flags that a component needs, and the section of its options."""
    flags: dict[str, Any] = {}
    for place, name in (("learner", learner), ("tasks", tasks)):
        flags |= {f"{place}.{key}": value for key, value in OWN.get(name, {}).items()}
    if tasks in ("cactus", "degraded", "outliers", "semi-supervised", "stream", "whitened"):
        flags["tasks.of"] = "toy"
    section, _, name = section.partition("=")
    if name and not section.startswith("hook"):
        flags[section] = name
    return flags, section


@pytest.mark.parametrize("seed", range(INPUTS["options"][0]))
def test_a_value_of_an_option_is_accepted_or_refused(seed: int, trials: Any) -> None:
    """Half of the values are flags, and half are in a recipe."""
    write_data()
    draw, listed, threads = (
        random.Random(f"options {seed}"),
        list(options())[seed :: INPUTS["options"][0]],
        torch.get_num_threads(),
    )
    recipe = Path("recipe.toml")
    for i in range(INPUTS["options"][1]):
        learner, tasks, section, option = listed[i % len(listed)]
        flags, section = flags_of(learner, tasks, section)
        others = [f"--{key}={value}" for key, value in flags.items() if key != f"{section}.{option}"]
        if draw.random() < 0.5:
            value = draw.choice(WORDS)
            args = [learner, tasks, *others, f"--{section}.{option}={value}"]
        else:
            value = draw.choice(TOML)
            recipe.write_text(f"[{section}]\n{option} = {value}\n")
            args = [learner, tasks, *others, "--recipe", "recipe.toml"]
        label = f"{seed}/{i}, {learner} {tasks} {section}.{option} = {value!r:.60}"
        trials.attempt(
            label, lambda args=args: checked(*args), lambda text: "fits" in text, others=(Refused,), may_write=True
        )
    torch.set_num_threads(threads)
    trials.finish(INPUTS["options"][1], refused=0.3, accepted=0.05)


RECIPE = b"""title = "a recipe"
learner = "protonet"
seed = 1
run = "runs/{seed}"
[tasks]
name = "toy"
way = 3
[training]
shot = 2
[optimizer]
name = "sgd"
lr = 0.1
[engine]
iterations = 3
[[test]]
shot = 1
[test.learner]
"""

LINES = (
    b"x = 1",
    b"[x]",
    b"[learner]",
    b"learner = []",
    b"tasks = 3",
    b"seed = -1",
    b"seed = 1.0",
    b"seed = 99999999999999999999",
    b"seed = true",
    b"run = 5",
    b'run = ""',
    b'run = "/proc/x"',
    b'run = "{seed}{x}"',
    b"hooks = 3",
    b"hooks = [3]",
    b'hooks = ["nothing"]',
    b"[hook.nothing]",
    b"[[test]]",
    b"test = 1",
    b"[test]",
    b"[[test.x]]",
    b"[test.learner.x.y]",
    b"init_from = 'nowhere'",
    b"init_from = 3",
    b"learner_seed = 'x'",
    b"title = 3",
    b"a.b.c.d = 1",
    b"way = [2, 5]",
    b"way = [5, 2]",
    b"name = 5",
    b"name = ''",
    b'name = "os:system"',
    b"x = " + b"[" * 5000,
    b"x = " + b"{a=" * 3000,
    b"a" + b".a" * 5000 + b" = 1",
    b"x = " + b"9" * 5000,
    b"\xff\xfe",
    b"\x00",
    b"\xef\xbb\xbf",
    b"\r",
    b'x = """',
    b"x = '\x1b'",
    b"x = 1\nx = 2",
    b"[learner.memory]",
    b"backend = 'gpu'",
    b"[backend]\nthreads = -1",
    b"[backend]\nthreads = 9999",
    b"[evaluate]\nepisodes = 0",
)


@pytest.mark.parametrize("seed", range(INPUTS["recipes"][0]))
def test_a_damaged_recipe_is_checked_or_refused(seed: int, trials: Any) -> None:
    """Its bytes are damaged, lines are added, or it is no usual file."""
    import os

    draw, threads = random.Random(f"recipes {seed}"), torch.get_num_threads()
    os.mkfifo("pipe.toml")
    Path("folder.toml").mkdir()
    for name, target in (
        ("zero.toml", "/dev/zero"),
        ("nowhere.toml", "none"),
        ("itself.toml", "itself.toml"),
        ("random.toml", "/dev/urandom"),
    ):
        os.symlink(target, name)
    odd = [
        "pipe.toml",
        "folder.toml",
        "zero.toml",
        "nowhere.toml",
        "itself.toml",
        "random.toml",
        "missing.toml",
        "",
        "y" * 5000,
    ]
    Path("large.toml").write_bytes(b"# " + b"x" * (1 << 26) + b"\n" + RECIPE)
    Path("utf16.toml").write_bytes(RECIPE.decode().encode("utf-16"))
    Path("bom.toml").write_bytes(b"\xef\xbb\xbf" + RECIPE.replace(b"\n", b"\r\n"))
    odd += ["large.toml", "utf16.toml", "bom.toml"]
    for i in range(INPUTS["recipes"][1]):
        name = "recipe.toml"
        content = bytearray(RECIPE)
        if i < len(odd):
            name = odd[i]
        elif draw.random() < 0.5:
            for _ in range(draw.choice([1, 1, 2, 5])):
                at, how = draw.randrange(len(content)), draw.random()
                if how < 0.6:
                    content[at] = draw.choice(b'\0\n"[]{}=.#-\xff0a')
                else:
                    del content[at : at + draw.randrange(1, 20)]
        else:
            lines = RECIPE.splitlines()
            lines.insert(draw.randrange(len(lines)), draw.choice(LINES))
            content = bytearray(b"\n".join(lines))
        Path("recipe.toml").write_bytes(content)
        label = f"{seed}/{i}, {name:.20} {bytes(content)!r:.400}"
        trials.attempt(
            label,
            lambda name=name: checked("--recipe", name),
            lambda text: "fits" in text,
            others=(Refused,),
            must=name == "bom.toml",
        )
    torch.set_num_threads(threads)
    trials.finish(INPUTS["recipes"][1], refused=0.3, accepted=0.02)
