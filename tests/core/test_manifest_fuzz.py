"""Damaged metadata of a distribution: listing goes on, and names the distribution.

Texts are damaged at random, with fixed seeds.
"""

from __future__ import annotations

import random
import re
import shutil
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from kshot._distributions import problems
from kshot.errors import KshotError
from kshot.registry import Registry
from kshot.registry.discovery import preparations
from kshot.registry.manifest import Manifest, read

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

INPUTS = {"manifests": (2, 350), "listings": (2, 125)}
"""How many seeds each test has, and how many inputs for each seed."""

WHOLE = """api_level = 1
lifecycle = "incubating"
requires = ["math"]
[learners.bad]
summary = "A   learner"
kinds = ["classification", "regression"]
paper = "arXiv:1703.05175"
aliases = ["other"]
[tasks.worse]
"""

LINES = (
    *(
        "api_level = 2",
        "api_level = 0",
        'api_level = "1"',
        "api_level = 1.0",
        "api_level = true",
        "api_level = -99999999999999999999",
    ),
    *(
        "lifecycle = 3",
        "lifecycle = []",
        "requires = 3",
        'requires = ["a b"]',
        'requires = [""]',
        'requires = ["../x"]',
        "requires = [1]",
    ),
    *(
        "[learners]",
        "[learners.bad]",
        "[learners.BAD]",
        '[learners.""]',
        '[learners."a b"]',
        "[learners.bad.x]",
        "[hooks]",
        "[x.y]",
    ),
    *(
        "summary = 3",
        "summary = []",
        'summary = "\\u001b[31mred"',
        'summary = "a\\u202eb"',
        "kinds = 3",
        "kinds = [3]",
        'kinds = "x"',
    ),
    *(
        'kinds = ["guessing"]',
        'aliases = [""]',
        'aliases = ["a\\nb"]',
        'aliases = ["bad"]',
        "aliases = 3",
        "paper = 2020-01-01",
        "x = 1",
    ),
    *(
        'summary = "' + "x" * 100_000 + '"',
        "summary = " + "[" * 3000,
        "a" + ".a" * 3000 + " = 1",
        "x = " + "9" * 5000,
        'x = """',
        "\x00",
    ),
    *(
        "\ufeff",
        "\r",
        "# \x1b",
        "learners = 3",
        "tasks = []",
        "[[learners]]",
        "[[learners.bad]]",
        'aliases = ["' + "x" * 99 + '"]',
    ),
)

POINTS = """[kshot.learners]
bad = badpackage:Learner
[kshot.tasks]
worse = badpackage.inner:tasks [extra]
[kshot.manifest]
bad = badpackage:plugin.toml
[console_scripts]
bad = badpackage:main
"""

POINT_LINES = (
    *(
        "junk",
        "= x",
        "x =",
        "x = y",
        "x = a:b:c",
        "bad = os:system",
        "BAD = badpackage:Learner",
        "b d = badpackage:Learner",
        "x = ../y:z",
    ),
    *(
        "x = badpackage : Learner",
        "x = .:y",
        "x = badpackage..y:z",
        "x = 9:9",
        "[kshot.learners]",
        "[kshot.manifest]",
        "[kshot.]",
        "[",
        "]",
    ),
    *(
        "[kshot.preparations]\nx = badpackage:prepare",
        "[kshot.preparations]\nx",
        "[kshot.nonsense]\nx = a:b",
        "bad = badpackage:other.toml",
    ),
    *(
        "\x1b[2J = badpackage:Learner",
        "\u0440 = badpackage:Learner",
        "x" * 200 + " = badpackage:Learner",
        "x = " + "y" * 9000 + ":z",
    ),
    *(
        "x = " + "a." * 3000 + "b:c",
        "x = badpackage:" + "a." * 3000 + "b",
        "x = badpackage:Learner [" + "e," * 999 + "]",
        "# [kshot.tasks]",
    ),
)


def damaged(content: bytes, draw: random.Random) -> bytes:
    """Return bytes with some changed, removed or repeated."""
    bytes_ = bytearray(content)
    for _ in range(draw.choice([1, 1, 2, 5])):
        at, how = draw.randrange(len(bytes_)), draw.random()
        if how < 0.6:
            bytes_[at] = draw.choice(b'\0\n\r"[]{}=.#-\xff\xc3\x1b0aZ')
        elif how < 0.8:
            del bytes_[at : at + draw.randrange(1, 30)]
        else:
            bytes_[at:at] = bytes_[at : at + 60]
        bytes_ = bytes_ or bytearray(b"x")
    return bytes(bytes_)


def changed(text: str, lines: tuple[str, ...], draw: random.Random) -> bytes:
    """Return a text with damaged bytes, or with lines added or removed."""
    if draw.random() < 0.4:
        return damaged(text.encode(), draw)
    rows = text.splitlines()
    for _ in range(draw.choice([1, 1, 2])):
        if draw.random() < 0.2:
            del rows[draw.randrange(len(rows))]
        rows.insert(draw.randrange(len(rows) + 1), draw.choice(lines))
    content = "\n".join(rows)
    return content.encode("utf-16") if draw.random() < 0.03 else content.encode()


@pytest.mark.parametrize("seed", range(INPUTS["manifests"][0]))
def test_a_damaged_manifest_is_read_or_refused(seed: int, trials: Any) -> None:
    """What is read is what the text says."""
    draw, path = random.Random(f"manifests {seed}"), Path("plugin.toml")
    for i in range(INPUTS["manifests"][1]):
        path.write_bytes(changed(WHOLE, LINES, draw) if i else WHOLE.encode())
        label = f"{seed}/{i}, {path.read_bytes()!r:.300}"
        trials.attempt(
            label, lambda: read(path), lambda manifest: is_right(manifest, path), named="plugin.toml", must=not i
        )
    path.unlink()
    trials.finish(INPUTS["manifests"][1], refused=0.3, accepted=0.03)


def is_right(manifest: Manifest, path: Path) -> None:
    """Assert that a manifest has what its text says, in printable text of some length."""
    document = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    assert manifest.api_level == document["api_level"]
    for (group, name), entry in manifest.entries.items():
        table = document[group][name]
        assert re.sub(r"\s+", " ", entry.summary) == entry.summary
        assert len(entry.summary) <= 1000
        assert "\x1b" not in entry.summary
        assert "\u202e" not in entry.summary
        if manifest.api_level == 1:
            assert list(entry.kinds) == table.get("kinds", [])
            assert list(entry.aliases) == table.get("aliases", [])


def distribution(site: Path, name: str, points: bytes, manifest: bytes) -> None:
    """Write an installed distribution with a package."""
    info, package = site / f"kshot_{name}-1.0.dist-info", site / f"{name}package"
    shutil.rmtree(info, ignore_errors=True)
    shutil.rmtree(package, ignore_errors=True)
    for folder in (info, package):
        folder.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: kshot-{name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_bytes(points)
    (package / "__init__.py").write_text("")
    (package / "inner.py").write_text("")
    (package / "plugin.toml").write_bytes(manifest)


@pytest.mark.parametrize("seed", range(INPUTS["listings"][0]))
def test_a_damaged_distribution_stops_no_other(
    seed: int, trials: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The good one is listed as before, and the damaged one by its name."""
    draw, site = random.Random(f"listings {seed}"), tmp_path / "site"
    for name in ("agood", "zgood"):
        text = (
            WHOLE.replace("bad", name).replace("worse", f"{name}-tasks").replace('"other"', f'"{name}-other"').encode()
        )
        distribution(site, name, POINTS.replace("bad", name).replace("worse", f"{name}-tasks").encode(), text)
    monkeypatch.setattr(sys, "path", [str(site)])

    def listed() -> list[Any]:
        found = Registry().plugins()
        assert isinstance(preparations(), frozenset)
        assert isinstance(problems(), list)
        return list(found)

    for i in range(INPUTS["listings"][1]):
        points = changed(POINTS, POINT_LINES, draw) if draw.random() < 0.7 else POINTS.encode()
        manifest = changed(WHOLE, LINES, draw) if draw.random() < 0.5 else WHOLE.encode()
        distribution(site, "bad", points, manifest)
        if draw.random() < 0.1:
            metadata = site / "kshot_bad-1.0.dist-info" / "METADATA"
            draw.choice(
                [
                    lambda p: p.unlink(),
                    lambda p: p.write_bytes(b"\xff\xfe\0"),
                    lambda p: p.write_text("Name: \x1b[2J\nVersion: x\n"),
                ]
            )(metadata)
        if draw.random() < 0.1:
            odd = draw.choice(
                [site / "badpackage" / "plugin.toml", site / "kshot_bad-1.0.dist-info" / "entry_points.txt"]
            )
            odd.unlink()
            target = "/dev/zero" if odd.suffix == ".toml" else "/dev/null"
            draw.choice(
                [
                    lambda p: p.mkdir(),
                    lambda p, target=target: p.symlink_to(target),
                    lambda p: p.symlink_to(p.name),
                    lambda p: None,
                ]
            )(odd)
        trials.attempt(f"{seed}/{i}, {points!r:.200} {manifest!r:.200}", listed, goes_on)
    trials.finish(INPUTS["listings"][1], refused=0)


def goes_on(listed: list[Any]) -> None:
    """Assert that the good distributions are listed, and that what is wrong with another one is said of it."""
    for name in ("agood", "zgood"):
        states = {plugin.name: plugin.state for plugin in listed if plugin.distribution == f"kshot-{name}"}
        assert states == {name: "ok", f"{name}-tasks": "ok"}
    for plugin in listed:
        if plugin.state == "ok":
            continue
        assert "good" not in plugin.distribution
        assert plugin.distribution
        assert plugin.reason
        shown = f"{plugin.refusal}{plugin.name}{plugin.summary}"
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", shown), shown
        assert len(shown) < 20_000
        try:
            Registry().load(plugin.name, plugin.group)
        except KshotError:
            pass
        else:
            assert plugin.state == "ok"
