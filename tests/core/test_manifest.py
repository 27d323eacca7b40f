"""``plugin.toml``: what it may contain, and how errors in it are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from kshot.registry.manifest import Entry, Manifest, ManifestError, parse, read
from kshot.spec import KIND_NAMES

WHOLE = """
api_level = 1
lifecycle = "incubating"
requires = ["torchaudio", "sklearn.cluster"]

[learners.protonet]
summary = "Prototypical   networks"
kinds = ["classification", "regression"]
paper = "arXiv:1703.05175"
aliases = ["prototypical"]

[tasks.sounds]
"""


def test_whole_manifest_is_read() -> None:
    """A manifest with every key is read."""
    assert parse(WHOLE) == Manifest(
        api_level=1,
        lifecycle="incubating",
        requires=("torchaudio", "sklearn.cluster"),
        entries={
            ("learners", "protonet"): Entry(
                "Prototypical networks",
                ("classification", "regression"),
                "arXiv:1703.05175",
                ("prototypical",),
            ),
            ("tasks", "sounds"): Entry(),
        },
    )


def test_api_level_alone_is_enough() -> None:
    """All other keys have defaults."""
    assert parse("api_level = 1") == Manifest(1, "stable", (), {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "m.toml: got no api_level, expected api_level = 1"),
        ('api_level = "1"', "m.toml, line 1: api_level: got '1', expected an integer"),
        ("api_level = true", "m.toml, line 1: api_level: got True, expected an integer"),
        (
            "api_level = 1\nlifecycle = 'old'",
            "m.toml, line 2: lifecycle: got 'old', expected one of stable, incubating",
        ),
        (
            "api_level = 1\nrequires = 'torch'",
            "m.toml, line 2: requires: got 'torch', expected a list of strings",
        ),
        ("api_level = 1\nrequires = [1]", "m.toml, line 2: requires: got [1], expected a list of strings"),
        (
            "api_level = 1\n\n[learner.x]",
            "m.toml, line 3: got the unknown key 'learner', expected one of api_level, lifecycle, requires, learners, "
            "tasks, memories, backends, hooks, encoders; did you mean 'learners'?",
        ),
        (
            "api_level = 1\n[tasks.a]\nsummary = 'x'\n[tasks.b]\nsummary = 'x'\nkind = ['control']",
            "m.toml, line 6: [tasks.b]: got the unknown key 'kind', expected one of summary, kinds, paper, aliases; "
            "did you mean 'kinds'?",
        ),
        (
            "api_level = 1\n[tasks.a]\nkinds = ['klassification']",
            "m.toml, line 3: [tasks.a]: got the kind 'klassification', expected some of "
            f"{', '.join(KIND_NAMES)}; did you mean 'classification'?",
        ),
        (
            "api_level = 1\n[tasks.b]\nsummary = 'x'\n[tasks.a]\nsummary = 3",
            "m.toml, line 5: [tasks.a]: got summary = 3, expected a string",
        ),
        (
            "api_level = 1\n[tasks.a]\naliases = 'b'",
            "m.toml, line 3: aliases: got 'b', expected a list of strings",
        ),
        ("api_level = 1\n[tasks]\na = 3", "m.toml, line 3: tasks.a: got 3, expected a table [tasks.a]"),
        ("api_level = 1\ntasks = 3", "m.toml, line 2: tasks: got 3, expected tables [tasks.NAME]"),
    ],
)
def test_what_it_can_not_say_is_refused_with_the_line(text: str, message: str) -> None:
    """The message names the line of the misspelt key or the wrong value."""
    with pytest.raises(ManifestError) as caught:
        parse(text, where="m.toml")
    assert str(caught.value) == message


def test_text_that_is_no_toml_is_refused_with_the_line() -> None:
    """The message begins with tomllib's own position."""
    with pytest.raises(ManifestError, match=r"^m\.toml, line 2: got invalid TOML: "):
        parse("api_level = 1\n[tasks", where="m.toml")


@pytest.mark.parametrize("level", [0, 2])
def test_manifest_of_another_api_level_is_not_judged(level: int) -> None:
    """Its keys are unknown here; the registry refuses the level and says what to update."""
    tables = "[tasks.a]\nsummary = 'later'\nkinds = 7\n[tasks.b]\nsummary = 1\n[hooks]\nx = 1"
    text = f"api_level = {level}\nnew = 1\n{tables}"
    assert parse(text) == Manifest(
        api_level=level,
        entries={("tasks", "a"): Entry(summary="later"), ("tasks", "b"): Entry(), ("hooks", "x"): Entry()},
    )


def test_file_that_can_not_be_read_is_refused_by_name(tmp_path: Path) -> None:
    """A missing file and a file that is not text are refused."""
    with pytest.raises(ManifestError, match=r"missing\.toml: can't be read: No such file"):
        read(tmp_path / "missing.toml")
    path = tmp_path / "plugin.toml"
    path.write_bytes(b"api_level = 1 # \xff")
    with pytest.raises(ManifestError, match=r"plugin\.toml: got bytes, expected UTF-8 text"):
        read(path)
    path.write_text("api_level = 1", encoding="utf-8")
    assert read(path) == Manifest()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("requires = " + "[" * 5000 + "]" * 5000, "got values nested too deeply"),
        ("requires = " + "[" * 900 + "]" * 900, "nested too deeply|expected a list of strings"),
        ("api_level = " + "1" * 5000, "got invalid TOML: "),
        ("[tasks.x]\naliases = ['\\u0440rotonet']", "expected a list of strings|got the alias"),
        ('[tasks.x]\naliases = ["\\u0440rotonet"]', r"got the alias '\\u0440rotonet', expected at most 64 letters"),
        ('[tasks.x]\naliases = ["a b"]', "got the alias 'a b', expected at most 64 letters"),
    ],
)
def test_hostile_manifest_is_refused_as_any_other(text: str, message: str) -> None:
    """Whatever the reader raises must not reach the list of all plugins."""
    head = "" if text.startswith("api_level") else "api_level = 1\n"
    with pytest.raises(ManifestError, match=message):
        parse(head + text)


def test_texts_of_a_manifest_can_be_shown() -> None:
    """Control characters are removed, and long texts are cut."""
    text = f'api_level = 1\n[tasks.x]\nsummary = "\\u001b[31mred\\u202e {"x" * 9000}"\npaper = "\\u0007p"\n'
    entry = parse(text).entries["tasks", "x"]
    assert entry.summary.startswith("red xxx")
    assert len(entry.summary) == 400
    assert entry.paper == "p"


def test_file_of_a_manifest_may_have_a_byte_order_mark_and_a_sensible_size(tmp_path: Path) -> None:
    """Some editors write the mark."""
    (tmp_path / "plugin.toml").write_bytes(b"\xef\xbb\xbfapi_level = 1\n")
    assert read(tmp_path / "plugin.toml").api_level == 1
    (tmp_path / "plugin.toml").write_bytes(b"#" * (2 << 20))
    with pytest.raises(ManifestError, match=r"got a file of 2097152 bytes, expected at most"):
        read(tmp_path / "plugin.toml")
