"""Every state and error of a plugin, with real distributions that are built from ``plugins/`` and installed by pip.

Each observation is made in a separate process, in which all of them are installed together.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SOURCES = Path(__file__).with_name("plugins")

BUILD = """
import os, sys
from hatchling.build import build_wheel
out, *folders = sys.argv[1:]
for folder in folders:
    os.chdir(folder)
    build_wheel(out)
"""

OBSERVE = """
import json, sys
import kshot.registry as registry
from kshot.errors import KshotError

def error_of(function, *args, **options):
    try:
        function(*args, **options)
    except KshotError as exc:
        cause = exc.__cause__
        return {"type": type(exc).__name__, "text": str(exc), "cause": f"{type(cause).__name__}: {cause}"}
    return None

def state_of(name):
    listed = [plugin for plugin in registry.plugins() if plugin.name == name]
    return [[plugin.state, plugin.reason] for plugin in listed]

result = None
"""


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a folder in which every distribution of ``plugins/`` is installed and two of them are partly removed."""
    work = tmp_path_factory.mktemp("contract")
    sources, wheels, site = work / "sources", work / "wheels", work / "site"
    shutil.copytree(SOURCES, sources)
    wheels.mkdir()
    folders = sorted(map(str, sources.iterdir()))
    subprocess.run([sys.executable, "-c", BUILD, str(wheels), *folders], check=True, capture_output=True, text=True)
    install = [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--no-compile",
        "--target",
        str(site),
    ]
    built = sorted(map(str, wheels.glob("*.whl")))
    assert len(built) == len(folders)
    subprocess.run([sys.executable, *install, *built], check=True, capture_output=True, text=True)
    shutil.rmtree(site / "kshot_stale")
    (site / "kshot_halved/data/tasks.py").unlink()
    damage(site)
    return site


def damage(site: Path) -> None:
    """Damage what no build tool writes, and leave what an interrupted pip leaves."""
    undecodable = site / "kshot_undecodable-1.0.dist-info/entry_points.txt"
    undecodable.write_bytes(undecodable.read_bytes() + b"\xff\xfe = nothing\n")
    junk = site / "kshot_junk-1.0.dist-info/entry_points.txt"
    junk.write_text(junk.read_text() + "this line is no entry point\n")
    leftover = site / "~shot_good-0.9.dist-info"
    leftover.mkdir()
    (leftover / "METADATA").write_text("Metadata-Version: 2.1\nName: kshot-good\nVersion: 0.9\n")
    (leftover / "entry_points.txt").write_text("[kshot.tasks]\ngood = kshot_good:GoneTasks\n")


GOOD = {"good", "good-learner", "manifestless", "aliased", "plain", "undecodable", "junk", "pretender"}


class Observer:
    """Run lines in a fresh process that sees the installed distributions, and return their ``result``."""

    def __init__(self, site: Path) -> None:
        self.site = site

    def __call__(self, *lines: str, **environment: str) -> Any:
        path = os.pathsep.join(filter(None, [str(self.site), os.environ.get("PYTHONPATH", "")]))
        env = {**os.environ, "KSHOT_DISABLE": "", **environment, "PYTHONPATH": path}
        program = "\n".join([OBSERVE, *lines, "print(json.dumps(result))"])
        done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def command(self, *words: str) -> tuple[int, str, str]:
        """Run a command of kshot in such a process; return its exit code and what it printed, as it printed it."""
        path = os.pathsep.join(filter(None, [str(self.site), os.environ.get("PYTHONPATH", "")]))
        env = {**os.environ, "KSHOT_DISABLE": "", "PYTHONPATH": path}
        done = subprocess.run([sys.executable, "-m", "kshot", *words], env=env, capture_output=True, check=False)
        return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.fixture(scope="session")
def observe(site: Path) -> Observer:
    return Observer(site)


@pytest.fixture(scope="session")
def listed(observe: Observer) -> dict[str, Any]:
    """Return the states and reasons as listed before any import, and which modules the listing imported."""
    result: dict[str, Any] = observe(
        "rows = [[p.name, p.distribution, p.state, p.reason] for p in registry.plugins()]",
        "ours = {p.target.partition(':')[0].partition('.')[0] for p in registry.plugins() if not p.builtin}",
        "imported = sorted(ours & set(sys.modules))",
        "result = {'rows': rows, 'plugins': imported, 'torch': 'torch' in sys.modules}",
    )
    return result


def state(listed: dict[str, Any], name: str) -> tuple[str, str]:
    """Return the state and the reason of the only plugin with this name."""
    [(_, _, state_of, reason)] = [row for row in listed["rows"] if row[0] == name]
    return state_of, reason


def test_listing_imports_no_plugin_and_no_torch(listed: dict[str, Any]) -> None:
    """Otherwise one slow or broken plugin would affect every ``kshot list``."""
    assert listed["plugins"] == []
    assert listed["torch"] is False


def test_good_plugins_are_ok_beside_every_broken_one(listed: dict[str, Any], observe: Observer) -> None:
    """A good plugin can be loaded and built after all broken ones were tried."""
    assert state(listed, "good") == ("ok", "")
    assert state(listed, "good-learner") == ("ok", "")
    result = observe(
        "failed = {p.name for p in registry.plugins() if error_of(registry.load, p.name)}",
        "tasks = registry.tasks('good', way=7)",
        "result = [sorted(failed), tasks.way, registry.tasks('fine').way]",
    )
    refused = """attributeless deviceless doubled exiting halved malformed needy nested newer older
        raising slip stale twice"""
    assert set(refused.split()) <= set(result[0])
    assert not {*GOOD, "choosy", "hollow", "cpu"} & set(result[0])
    assert result[1:] == [7, 5]


def test_no_manifest_is_allowed(listed: dict[str, Any], observe: Observer) -> None:
    """A plugin without a manifest, with an entry point alone, has API level 1 and no summary."""
    assert state(listed, "manifestless") == ("ok", "")
    lines = "p = registry.find('manifestless'); result = [p.api_level, p.summary, p.kinds, p.lifecycle]"
    assert observe(lines) == [1, "", [], "stable"]


def test_manifest_is_read_without_importing(observe: Observer) -> None:
    """The list shows summary, kinds and aliases, and imports nothing."""
    result = observe(
        "p = registry.find('fine')",
        "result = [p.name, p.version, p.summary, p.kinds, p.aliases, 'kshot_good' in sys.modules]",
    )
    assert result == ["good", "1.0", "tasks without any content", ["classification"], ["fine"], False]


def test_import_that_raises_is_broken_and_its_cause_is_chained(listed: dict[str, Any], observe: Observer) -> None:
    """Loading it raises the original cause, and the list then shows the traceback."""
    assert state(listed, "raising")[0] == "ok"  # nothing but importing it could tell
    error, after, again = observe(
        "error = error_of(registry.tasks, 'raising')",
        "after = state_of('raising')",
        "result = [error, after, error_of(registry.tasks, 'raising')]",
    )
    assert error["type"] == "PluginError"
    assert error["cause"] == "RuntimeError: the tables could not be prepared"
    assert "tasks 'raising' (kshot-raising 1.0) is broken" in error["text"]
    assert "the tables could not be prepared" in error["text"]
    [(found, reason)] = after
    assert found == "broken"
    assert "RuntimeError: the tables could not be prepared" in reason.splitlines()[0]
    assert "in prepare" in reason
    assert "registry.py" not in reason  # the traceback is the plugin's, not ours
    assert again == error


def test_import_that_exits_does_not_end_the_process(observe: Observer) -> None:
    """Importing a plugin must not end the program."""
    error = observe("result = error_of(registry.load, 'exiting')")
    assert error["type"] == "PluginError"
    assert error["cause"] == "SystemExit: enough"


def test_entry_point_to_a_missing_attribute_is_broken(observe: Observer) -> None:
    """If the module exists but not the name in it, the AttributeError is the cause."""
    error = observe("result = error_of(registry.load, 'attributeless')")
    assert error["type"] == "PluginError"
    assert "has no attribute 'Tusks'" in error["cause"]


def test_newer_api_level_is_incompatible_and_never_imported(listed: dict[str, Any], observe: Observer) -> None:
    """The other keys of a newer manifest are not checked, and the message advises a newer kshot."""
    assert state(listed, "newer") == (
        "incompatible",
        "needs API level 2, this kshot speaks 1: pip install -U kshot",
    )
    error, imported = observe("result = [error_of(registry.load, 'newer'), 'kshot_newer' in sys.modules]")
    assert error["type"] == "PluginError"
    assert "pip install -U kshot" in error["text"]
    assert imported is False


def test_older_api_level_is_incompatible(listed: dict[str, Any]) -> None:
    """The message advises an update of the plugin."""
    found, reason = state(listed, "older")
    assert found == "incompatible"
    assert reason.endswith("pip install -U kshot-older")


def test_name_claimed_by_two_distributions_is_refused_for_both(listed: dict[str, Any], observe: Observer) -> None:
    """Both are refused and named, so that the order of installation does not decide."""
    rows = [row for row in listed["rows"] if row[0] == "twice"]
    assert sorted(row[1] for row in rows) == ["kshot-first", "kshot-second"]
    for _, _, found, reason in rows:
        assert found == "duplicate"
        assert "kshot-first 1.0" in reason
        assert "kshot-second 1.0" in reason
    error = observe("result = error_of(registry.tasks, 'twice')")
    assert error["type"] == "PluginError"
    assert "kshot-first" in error["text"]
    assert "kshot-second" in error["text"]


def test_disabling_one_distribution_ends_the_duplicate(observe: Observer) -> None:
    """The message suggests this if both must stay installed."""
    result = observe("result = [registry.load('twice').__module__, state_of('twice')]", KSHOT_DISABLE="kshot-second")
    assert result == ["kshot_first", [["ok", ""], ["disabled", "KSHOT_DISABLE names it"]]]


def test_name_claimed_in_two_groups_of_one_distribution_is_refused(listed: dict[str, Any]) -> None:
    """Names are unique across all groups, so that `kshot info NAME` and nested options have one meaning."""
    rows = [row for row in listed["rows"] if row[0] == "doubled"]
    assert [row[2] for row in rows] == ["duplicate", "duplicate"]
    assert all("learners" in row[3] and "tasks" in row[3] for row in rows)


def test_name_beats_an_alias(listed: dict[str, Any], observe: Observer) -> None:
    """Otherwise a stranger's alias would make another distribution's plugin unusable."""
    for name in ("aliased", "plain", "pretender", "good-learner"):
        assert state(listed, name) == ("ok", "")
    found = observe(
        "result = [registry.find(n).distribution for n in ('plain', 'aliased', 'good-learner', 'also-good')]",
    )
    assert found == ["kshot-plain", "kshot-aliased", "kshot-good", "kshot-pretender"]
    assert observe("result = registry.find('pretender').aliases") == ["also-good"]


def test_alias_of_two_plugins_is_refused_and_their_names_work(observe: Observer) -> None:
    """The order of installation must not decide which one is meant."""
    error, names = observe(
        "from kshot.registry import Registry, Plugin",
        "made = Registry()",
        "made.plugins()",
        "for one in ('one', 'two'):",
        "    made._installed.append(Plugin(one, 'tasks', one, '1.0', 'kshot_good:GoodTasks', aliases=('both',)))",
        "result = [error_of(made.tasks, 'both'), [made.load(one).__name__ for one in ('one', 'two')]]",
    )
    assert error["text"].startswith("'both' is an alias of tasks 'one' (one 1.0) and tasks 'two' (two 1.0)")
    assert names == ["GoodTasks", "GoodTasks"]


def test_what_pip_left_is_ignored_and_reported(listed: dict[str, Any], observe: Observer) -> None:
    """A folder with a tilde has the entry points of an earlier version, and no code."""
    assert state(listed, "good") == ("ok", "")
    assert observe("result = [registry.find('good').version, registry.load('good').__name__]") == ["1.0", "GoodTasks"]
    _, report, _ = observe.command("doctor")
    assert "~shot_good-0.9.dist-info was left by an interrupted pip and is ignored; remove this folder" in report


def test_nested_manifest_breaks_its_own_plugin_only(listed: dict[str, Any], observe: Observer) -> None:
    """Reading it needs more recursion than Python allows."""
    found, reason = state(listed, "nested")
    assert found == "broken"
    assert reason.endswith("plugin.toml: got values nested too deeply, expected at most lists of strings")
    code, text, _ = observe.command("list")
    assert code == 0
    assert "nested too deeply" in text


def test_damaged_entry_points_stop_neither_torch_nor_the_plugin(listed: dict[str, Any], observe: Observer) -> None:
    """Torch reads the entry points of all distributions; the warning names the damaged ones."""
    assert state(listed, "undecodable") == state(listed, "junk") == ("ok", "")
    caught, built = observe(
        "import warnings",
        "with warnings.catch_warnings(record=True) as caught:",
        "    warnings.simplefilter('always')",
        "    import torch",
        "result = [[str(w.message) for w in caught], type(registry.tasks('junk')).__name__]",
    )
    assert built == "Tasks"
    [message] = caught
    assert "kshot-undecodable 1.0: its entry_points.txt in " in message
    assert "(line 3: got 'this line is no entry point', expected NAME = VALUE)" in message
    assert "pip install --force-reinstall kshot-junk" in message
    _, report, _ = observe.command("doctor")
    assert "note: kshot-undecodable 1.0: its entry_points.txt" in report
    assert "note: kshot-junk 1.0: its entry_points.txt" in report


def test_import_that_meddles_is_named_and_undone(observe: Observer) -> None:
    """Otherwise the results of all other plugins would depend on whether this one was imported."""
    caught, same = observe(
        "import random, warnings, numpy as np, torch",
        "def now():",
        "    flags = [torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled()]",
        "    flags += [torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), random.getstate()]",
        "    return str([*flags, np.random.get_state()[1].sum(), torch.get_rng_state().sum()])",
        "before = now()",
        "with warnings.catch_warnings(record=True) as caught:",
        "    warnings.simplefilter('always')",
        "    registry.load('meddling')",
        "result = [[str(w.message) for w in caught], before == now()]",
    )
    assert same
    [message] = caught
    assert message.startswith("tasks 'meddling' (kshot-meddling 1.0): importing it changed the state of random, ")
    for name in ("numpy.random", "random state", "default dtype", "default device", "gradient mode", "deterministic"):
        assert name in message


def test_import_that_closes_standard_output_is_named_and_undone(observe: Observer) -> None:
    """Otherwise the result of a command would not be printed, or printing it would fail."""
    code, text, errors = observe.command("info", "closing")
    assert code == 0
    assert "Tasks of no content." in text
    assert "tasks 'closing' (kshot-closing 1.0): importing it changed " in errors
    assert "standard output" in errors


@pytest.mark.parametrize("words", [("list",), ("info", "escaping"), ("doctor",), ("check", "good-learner", "escaping")])
def test_control_characters_of_a_plugin_are_not_printed(observe: Observer, words: tuple[str, ...]) -> None:
    """A terminal would obey them: clear the screen, rename the window, or hide text."""
    _, text, errors = observe.command(*words)
    shown = text + errors
    assert [c for c in shown if c in "\x1b\x07\u202e"] == []
    expected = {"list": "Clears the screen\n", "info": "of an episode", "doctor": "plugins ok", "check": "cleared"}
    assert expected[words[0]] in shown


def test_name_with_letters_that_look_like_others_is_refused_and_escaped(listed: dict[str, Any]) -> None:
    """A reader can't tell it from the plugin that it imitates."""
    found, reason = state(listed, "g\u043eod")
    assert found == "broken"
    assert reason == "got the name 'g\\u043eod', expected lower-case letters, digits and hyphens"


def test_builtin_can_not_be_overridden(listed: dict[str, Any], observe: Observer) -> None:
    """A plugin that claims `cpu` or `progress` is a duplicate, and the built-in remains."""
    for name in ("cpu", "progress"):
        rows = {row[1]: row[2:] for row in listed["rows"] if row[0] == name}
        assert rows["kshot"] == ["ok", ""]
        assert rows["kshot-usurper"][0] == "duplicate"
        assert "built into kshot" in rows["kshot-usurper"][1]
    targets = observe("result = [registry.find(n).target for n in ('cpu', 'progress')]")
    assert targets == ["kshot._engine.cpu:Cpu", "kshot._engine.builtin_hooks:Progress"]
    error = observe("result = error_of(registry.tasks, 'progress')")
    assert error["type"] == "PluginError"


def test_disabled_by_the_environment(observe: Observer) -> None:
    """KSHOT_DISABLE takes names and aliases; it is read at each request, and nothing is imported or uninstalled."""
    found, error, imported, other, later = observe(
        "import os",
        "first = state_of('good')",
        "error = error_of(registry.tasks, 'good')",
        "imported = 'kshot_good' in sys.modules",
        "other = state_of('good-learner')",
        "del os.environ['KSHOT_DISABLE']",
        "result = [first, error, imported, other, state_of('good')]",
        KSHOT_DISABLE="raising, fine",
    )
    assert found == [["disabled", "KSHOT_DISABLE names it"]]
    assert error["type"] == "PluginError"
    assert "KSHOT_DISABLE" in error["text"]
    assert imported is False
    assert other == later == [["ok", ""]]


def test_unknown_and_ill_typed_options_are_refused_together(observe: Observer) -> None:
    """One message has all wrong options and the list of valid ones, so that a user corrects a command once."""
    error = observe("result = error_of(registry.tasks, 'good', wya=3, way='five', noise=True, order='sort')")
    assert error["type"] == "OptionError"
    assert "tasks 'good' (kshot-good 1.0)" in error["text"]
    assert "wya: unknown option; did you mean 'way'?" in error["text"]
    assert "way: got 'five' (str), expected int" in error["text"]
    assert "noise: got True (bool), expected float" in error["text"]
    assert "order: got 'sort', expected one of 'random', 'sorted'; did you mean 'sorted'?" in error["text"]
    assert "way: int = 5  number of classes per episode." in error["text"]
    assert "order: 'random' | 'sorted' = 'random'" in error["text"]


def test_stale_entry_point_is_seen_by_the_list(listed: dict[str, Any], observe: Observer) -> None:
    """A partly removed distribution is recognised without an import; the cause is then the import's error."""
    for name, module in (("stale", "kshot_stale"), ("halved", "kshot_halved.data.tasks")):
        found, reason = state(listed, name)
        assert found == "broken"
        assert f"the module {module} does not exist" in reason
        assert f"pip uninstall kshot-{name}" in reason
        error = observe(f"result = error_of(registry.load, {name!r})")
        assert error["type"] == "PluginError"
        assert error["cause"] == f"ModuleNotFoundError: No module named '{module}'"
        assert f"pip install --force-reinstall kshot-{name}" in error["text"]


def test_malformed_manifest_is_broken_with_file_and_line(listed: dict[str, Any], observe: Observer) -> None:
    """The list does not raise an exception for it, and names file and line."""
    found, reason = state(listed, "malformed")
    assert found == "broken"
    assert "plugin.toml, line 4: got invalid TOML" in reason
    error = observe("result = error_of(registry.load, 'malformed')")
    assert error["type"] == "PluginError"
    assert error["cause"].startswith("ManifestError: ")


def test_unknown_key_of_a_manifest_is_broken(listed: dict[str, Any]) -> None:
    """A misspelt key is reported and not ignored."""
    found, reason = state(listed, "slip")
    assert found == "broken"
    assert "plugin.toml, line 4: [tasks.slip]: got the unknown key 'sumary'" in reason
    assert "did you mean 'summary'?" in reason


def test_missing_requirement_is_unavailable_with_the_install_line(listed: dict[str, Any], observe: Observer) -> None:
    """The manifest names the required modules, so that the list can check them without an import."""
    found, reason = state(listed, "needy")
    assert found == "unavailable"
    assert reason == "needs a_module_that_is_nowhere, not installed: pip install a_module_that_is_nowhere"
    error = observe("result = error_of(registry.load, 'needy')")
    assert error["type"] == "Unavailable"
    assert reason in error["text"]


def test_unavailable_raised_at_import_is_the_state(observe: Observer) -> None:
    """A plugin that lacks something on this machine is not broken, and its own message is the reason."""
    error, after = observe("result = [error_of(registry.load, 'deviceless'), state_of('deviceless')]")
    assert error["type"] == "Unavailable"
    assert error["cause"] == "Unavailable: no such device in this machine"
    assert "backend 'deviceless' (kshot-deviceless 1.0) is unavailable" in error["text"]
    assert after == [["unavailable", "no such device in this machine"]]


def test_unavailable_raised_when_built_says_who(observe: Observer) -> None:
    """Other options may work, so the plugin's state remains ok."""
    error, after = observe("result = [error_of(registry.backend, 'choosy', index=3), state_of('choosy')]")
    assert error["type"] == "Unavailable"
    assert error["text"] == "backend 'choosy' (kshot-choosy 1.0) is unavailable: no device number 3"
    assert after == [["ok", ""]]


def test_factory_that_returns_something_else_is_refused(observe: Observer) -> None:
    """It is refused when it is built, with the plugin's name, and not inside a training loop."""
    error = observe("result = error_of(registry.tasks, 'hollow')")
    assert error["type"] == "PluginError"
    assert (
        "tasks 'hollow' (kshot-hollow 1.0): got a int from its factory, which has no spec and no sample"
        in error["text"]
    )


def test_unknown_name_suggests_what_is_installed_or_to_install(observe: Observer) -> None:
    """The message has a similar name, the group that the name belongs to, or the first-party
    distribution to install.
    """
    near, group, install = observe(
        "near = error_of(registry.tasks, 'godo')",
        "group = error_of(registry.learner, 'good', None)",
        "result = [near, group, error_of(registry.learner, 'concept-space', None)]",
    )
    assert {near["type"], group["type"], install["type"]} == {"UnknownPluginError"}
    assert near["text"] == "no tasks are called 'godo'; did you mean 'good'?"
    assert group["text"] == "'good' is tasks, not a learner: kshot.tasks('good')"
    assert install["text"].endswith("pip install kshot-concept-space")


def test_learner_is_initialised_by_its_seed_alone(observe: Observer) -> None:
    """The same seed gives the same parameters, whatever was drawn before, and the process's random state does not
    change.
    """
    result = observe(
        "import torch",
        "from kshot.spec import TaskSpec",
        "spec = TaskSpec('classification', (1, 4, 4), way=5, shot=1, query=1)",
        "torch.manual_seed(1)",
        "before = torch.get_rng_state()",
        "one = registry.learner('good-learner', spec, seed=7)",
        "same = torch.equal(before, torch.get_rng_state())",
        "torch.rand(5)",
        "two = registry.learner('good-learner', spec, seed=7, scale=2)",
        "plain = registry.learner('good-learner', spec)",
        "zero = registry.learner('good-learner', spec, seed=0)",
        "how = registry.built(two)",
        "other = TaskSpec('regression', (1,), shot=1, query=1)",
        "misfit = error_of(registry.learner, 'good-learner', other)",
        "result = [same, torch.equal(2 * one.weight, two.weight), torch.equal(one.weight, plain.weight),",
        "    torch.equal(plain.weight, zero.weight),",
        "    how.plain(), how.distribution, how.version, how.seed, misfit]",
    )
    assert result[:4] == [True, True, False, True]
    assert result[4:8] == [{"name": "good-learner", "scale": 2.0}, "kshot-good", "1.0", 7]
    assert result[8]["type"] == "MisfitError"
    assert "learner 'good-learner' (kshot-good 1.0) does not fit these tasks" in result[8]["text"]
