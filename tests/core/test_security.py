"""What somebody else's files may do. The rules are those of SECURITY.md; the tests have their numbers."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import kshot
from kshot import Engine, registry
from kshot._engine.inputs import load_inputs
from kshot._engine.run_folder import RunFolder, digest, json_digest, load_checkpoint
from kshot.errors import KshotError, OptionError, PluginError, RunError
from kshot.registry.options import options_of
from kshot.runs.recipe import configure, layered
from kshot.testing import sample_learner, sample_tasks

ROOT = Path(__file__).parents[2]

SUPPORT = {"a": torch.zeros(1, 6), "b": torch.ones(1, 6)}

BUILT: list[str] = []
"""Which of the components below were built."""


def recorded_tasks(root: Path | None = None, way: int = 3) -> Any:
    """Build tasks with a path among their options, and record it."""
    BUILT.append("tasks")
    return sample_tasks.classification(way=way)


class Recorded:
    """A hook that records that it was built, with a folder to write to."""

    def __init__(self, folder: Path | None = None) -> None:
        BUILT.append("hook")

    @kshot.hookimpl
    def run_start(self, engine: Any, iteration: int, iterations: int) -> None:
        pass


@pytest.fixture(autouse=True)
def _plugins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    before = dict(registry.default._registered)
    kshot.register(sample_learner.NearestMean, name="sample-learner")
    kshot.register(recorded_tasks, name="recorded-tasks", group="tasks")
    kshot.register(Recorded, name="recorded", group="hooks")
    yield
    registry.default._registered = before


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of somebody else, with a hook and with paths."""
    tasks = {"name": "recorded-tasks", "root": str(tmp_path)}
    few = {"iterations": 2, "evaluate": {"episodes": 2}, "quiet": True}
    kshot.runs.train("sample-learner", tasks, hooks=["recorded"], run="run", **few)
    BUILT.clear()
    return Path("run")


def rewrite(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a run's plan as an attacker would, with the right digest."""
    config = json.loads((run / "config.json").read_text())
    del config["digest"]
    change(config["plan"])
    (run / "config.json").write_text(json.dumps({**config, "digest": json_digest(config)}))


def forge(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint with the right digest."""
    torch.save({"format": "kshot-checkpoint", "version": 1, "digest": digest(state), "state": state}, path)


class Bomb:
    """Create a file when it is unpickled."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("executed"),)


def test_every_rule_has_its_test() -> None:
    """And the other way round."""
    rules = re.findall(r"^- \*\*S(\d+)\.\*\* ", (ROOT / "SECURITY.md").read_text(encoding="utf-8"), re.MULTILINE)
    tests = [name.split("_")[1][1:] for name in globals() if re.match(r"test_s\d+_", name)]
    assert sorted(map(int, rules)) == list(range(1, len(rules) + 1))
    assert set(tests) == set(rules)


@pytest.mark.parametrize("file", ["inputs.pt", "checkpoints/00000002.pt"])
def test_s1_reading_a_run_executes_nothing(run: Path, file: str) -> None:
    """The message does not pass on torch's advice to load with ``weights_only=False``."""
    torch.save({"format": "kshot-checkpoint", "version": 1, "state": Bomb()}, run / file)
    with pytest.raises(RunError, match=re.escape(file)) as caught:
        kshot.Trained.of_run(run).predict(SUPPORT, torch.ones(1, 6))
    assert not Path("executed").exists()
    assert "weights_only" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_s2_only_registered_functions_prepare_inputs(run: Path) -> None:
    """Also with the right digest."""
    value = torch.load(run / "inputs.pt", weights_only=True)
    body = {"spec": value["spec"], "prepare": {"function": "os:system", "options": {"command": "touch executed"}}}
    torch.save({**value, **body, "digest": digest(body)}, run / "inputs.pt")
    with pytest.raises(RunError, match=r"inputs\.pt: got inputs prepared by 'os:system', expected a function that an"):
        kshot.Trained.of_run(run)
    body["prepare"] = {"function": "kshot.episode:as_inputs", "options": {"command": "x"}}
    torch.save({**value, **body, "digest": digest(body)}, run / "inputs.pt")
    with pytest.raises(RunError, match="command: unknown option"):
        kshot.Trained.of_run(run)


class WithEncoder(sample_learner.NearestMean):
    """The sample learner with a network of the user's choice."""

    def __init__(self, spec: Any, *, encoder: torch.nn.Module | None = None) -> None:
        super().__init__(spec)


def test_s3_networks_are_imported_from_trusted_places_only(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run folder is not one, even if it is on ``sys.path``; the warning names module, file and options."""
    kshot.register(WithEncoder, name="with-encoder")
    for folder in (run, Path("trusted")):
        folder.mkdir(exist_ok=True)
        (folder / "foreignnet.py").write_text(
            "import torch, pathlib\npathlib.Path('executed').touch()\n\n\nclass Net(torch.nn.Linear):\n    pass\n"
        )
    network = {"name": "foreignnet:Net", "in_features": 6, "out_features": 2}
    rewrite(run, lambda plan: plan.update(learner={"name": "with-encoder", "encoder": network}))
    with monkeypatch.context() as patched:
        patched.syspath_prepend(str(run.absolute()))
        with pytest.raises(RunError, match="foreignnet lies in"):
            kshot.Trained.of_run(run)
    assert not Path("executed").exists()
    with pytest.warns(UserWarning, match=r"importing foreignnet:Net from .*trusted.*called with \{'in_features': 6"):
        kshot.Trained.of_run(run, import_from="trusted")
    sys.modules.pop("foreignnet")


def test_s4_predictions_build_the_learner_and_the_backend_only(run: Path) -> None:
    """Without ``inputs.pt``, the tasks say how inputs are made."""
    kshot.Trained.of_run(run).predict(SUPPORT, torch.ones(1, 6))
    assert BUILT == []
    (run / "inputs.pt").unlink()
    kshot.Trained.of_run(run)
    assert BUILT == ["tasks"]


@pytest.mark.parametrize("use", [kshot.runs.evaluate, kshot.runs.resume])
def test_s5_paths_are_named_before_they_are_read(
    run: Path, use: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """The message is there before the tasks are built."""
    rewrite(run, lambda plan: plan["hooks"]["recorded"].update(folder="/elsewhere"))

    class Said(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            BUILT.append("said" if "names these paths" in record.getMessage() else "other")

    handler = Said()
    logging.getLogger("kshot.runs").addHandler(handler)
    try:
        with caplog.at_level(logging.INFO, "kshot.runs"):
            use(run, quiet=True)
    finally:
        logging.getLogger("kshot.runs").removeHandler(handler)
    assert BUILT[:2] == ["said", "tasks"]
    (message,) = [text for text in caplog.messages if "names these paths" in text]
    assert f"training.root = {Path.cwd()}" in message
    assert ("hook.recorded.folder = /elsewhere" in message) == (use is kshot.runs.resume)


def test_s6_an_evaluation_builds_no_hooks(run: Path) -> None:
    """A continued training has those that it began with."""
    kshot.runs.evaluate(run, evaluate={"episodes": 2}, quiet=True)
    assert "hook" not in BUILT
    kshot.runs.resume(run, quiet=True)
    assert "hook" in BUILT


@pytest.mark.skipif(os.name != "posix", reason="links need rights there")
@pytest.mark.parametrize("inner", ["checkpoints", "metrics.jsonl"])
def test_s7_links_out_of_the_run_folder_are_not_written_to(run: Path, inner: str) -> None:
    """Going on would delete old checkpoints there."""
    (run / inner).rename("mine")
    (run / inner).symlink_to(Path("mine").absolute())
    with pytest.raises(RunError, match=rf"{re.escape(inner)}: got a link to .*mine, outside of the run folder"):
        kshot.runs.resume(run, quiet=True)


def spoiled(value: Any) -> dict[str, Any]:
    """Return a checkpoint with one more value, and without a right digest, which can't be computed."""
    return {"format": "kshot-checkpoint", "version": 1, "digest": "", "state": {"x": value}}


def test_s8_stored_values_are_no_larger_than_their_file(run: Path) -> None:
    """Each of these files is small, and would need more memory than there is."""
    twice: list[Any] = []
    for _ in range(60):
        twice = [twice, twice]
    endless: list[Any] = []
    endless.append(endless)
    for value in (torch.zeros(1).expand(2**40), twice, endless):
        torch.save(spoiled(value), "c.pt")
        with pytest.raises(RunError, match=r"c\.pt: got a file that is truncated, corrupt or not a checkpoint"):
            load_checkpoint(Path("c.pt"))
    torch.save(spoiled(torch.zeros(2**20)), "c.pt")
    with zipfile.ZipFile("c.pt") as plain, zipfile.ZipFile("d.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    with pytest.raises(RunError, match=r"d\.pt: got a file that is"):
        load_checkpoint(Path("d.pt"))
    for text in ("[" * 100_000, '{"a":' * 500 + "1" + "}" * 500, '{"seed": ' + "1" * 5000 + "}", "[]", "\xff"):
        (run / "config.json").write_text(text, encoding="latin-1")
        with pytest.raises(RunError, match=r"config\.json can't be read"):
            _ = RunFolder.open(run).config


def test_s8_what_is_written_can_be_read() -> None:
    """A buffer of one element that is shared by many is written in full."""
    path = Path("c.pt")
    kshot._engine.run_folder.save_checkpoint(path, {"mask": torch.ones(1).expand(4000)})
    assert torch.equal(load_checkpoint(path)["mask"], torch.ones(4000))


def engine() -> Engine:
    tasks = sample_tasks.classification()
    return Engine(sample_learner.NearestMean(tasks.spec), tasks, optimizer={"name": "adam"})


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "iteration": lambda s: s.update(iteration=-1),
    "iteration: got nothing": lambda s: s.pop("iteration"),
    "iteration: got '3'": lambda s: s.update(iteration="3"),
    "learner.embedding.1.bias": lambda s: s["learner"].update({"embedding.1.bias": torch.full((16,), float("nan"))}),
    "learner.embedding.1.weight": lambda s: s["learner"].pop("embedding.1.weight"),
    "learner.more": lambda s: s["learner"].update(more=torch.ones(1)),
    "best.parameters.embedding.1.bias": lambda s: s["best"]["parameters"].update({"embedding.1.bias": torch.ones(3)}),
    "best.iteration": lambda s: s["best"].update(iteration=10**6),
    "best: got 'extra'": lambda s: s["best"].update(extra=1),
    "optimizer: got None": lambda s: s.update(optimizer=None),
    "optimizer.param_groups": lambda s: s["optimizer"]["param_groups"].append({}),
    "optimizer.param_groups[0].params": lambda s: s["optimizer"]["param_groups"][0].update(params=[0, 0]),
    "optimizer.param_groups[0].betas": lambda s: s["optimizer"]["param_groups"][0].update(betas=(0.9, 7.0)),
    "optimizer.param_groups[0]: got": lambda s: s["optimizer"]["param_groups"][0].pop("eps"),
    "optimizer.state.0.exp_avg": lambda s: s["optimizer"]["state"][0].update(exp_avg=torch.ones(2)),
    "optimizer.state.1.step": lambda s: s["optimizer"]["state"][1].update(step=torch.tensor(-1.0)),
    "optimizer.state.1.exp_avg_sq: got nothing": lambda s: s["optimizer"]["state"][1].pop("exp_avg_sq"),
    "optimizer.state: got": lambda s: s["optimizer"].update(state={7: {}}),
    "hooks: got": lambda s: s.update(hooks=[]),
}


@pytest.mark.parametrize("key", CHANGES)
def test_s9_a_wrong_value_is_named_and_nothing_has_changed(key: str) -> None:
    """Without the check before loading, the parameters were replaced, and then an error came."""
    trained = engine()
    trained.train(4, validate_every=3, validation_episodes=3)
    path = trained.save("c.pt")
    state = load_checkpoint(path)
    CHANGES[key](state)
    forge(path, state)
    target = engine()
    before = digest(target.state())
    with pytest.raises(RunError, match=rf"c\.pt: {re.escape(key)}") as caught:
        target.resume(path)
    assert "nothing was changed" in str(caught.value)
    assert digest(target.state()) == before


class Careless:
    """A hook that changes itself before it looks at its state."""

    def __init__(self) -> None:
        self.seen = 0

    @kshot.hookimpl
    def run_start(self, engine: Any, iteration: int, iterations: int) -> None:
        self.seen += 1

    def state_dict(self) -> dict[str, int]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.seen = -1
        self.seen = state["seen"] + 0


def test_s9_a_hook_that_can_t_load_its_state_changes_nothing() -> None:
    """Hooks load their states before anything else does, and are put back."""
    tasks = sample_tasks.classification()
    hook, learner = Careless(), sample_learner.NearestMean(tasks.spec)
    first = Engine(learner, tasks, hooks=[hook])
    first.train(2)
    path = first.save("c.pt")
    state = load_checkpoint(path)
    state["hooks"]["Careless"] = {"seen": "x"}
    forge(path, state)
    second = Engine(sample_learner.NearestMean(tasks.spec), tasks, hooks=[again := Careless()])
    before = digest(second.state())
    with pytest.raises(RunError, match=r"c\.pt: hooks: got a state that a hook can't load"):
        second.resume(path)
    assert digest(second.state()) == before
    assert again.seen == 0


def test_s9_a_refused_resume_leaves_no_folder_to_write_to(run: Path) -> None:
    """A training after a refused resume would have gone on in the run folder without its state."""
    tasks = sample_tasks.classification()
    (run / "checkpoints" / "00000002.pt").write_bytes(b"x")
    other = Engine(sample_learner.NearestMean(tasks.spec), tasks, run=run)
    with pytest.raises(RunError):
        other.resume()
    assert other.folder is None
    with pytest.raises(RunError, match="is not empty"):
        other.train(1)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda plan: plan.pop("learner"), "plan.learner: got nothing, expected a value"),
        (lambda plan: plan.update(more=1), "plan: got 'more', expected only the keys"),
        (lambda plan: plan.update(tests=[]), "plan.tests: got a value of type list, expected a list of at least 1"),
        (lambda plan: plan.update(seed=10**20), "plan.seed: got 100000000000000000000, expected a whole number"),
        (lambda plan: plan["optimizer"].update(lr=-1), "plan.optimizer: lr: got -1.0, expected float above 0"),
        (lambda plan: plan["engine"].update(keep=0), "plan.engine: keep: got 0, expected int from 1"),
        (lambda plan: plan["learner"].update(width=-5), "learner 'sample-learner': got options with which it raised"),
    ],
)
def test_s9_a_wrong_plan_is_named(run: Path, change: Callable[[dict[str, Any]], object], told: str) -> None:
    """Also if a plugin raised an error of its own on a value."""
    rewrite(run, change)
    with pytest.raises(RunError, match=rf"config\.json: {re.escape(told)}"):
        kshot.Trained.of_run(run)


def test_s10_digests_show_damage_and_are_optional_in_a_config(run: Path) -> None:
    """A config without one, as the first runs and the recorded ones have it, is read."""
    path = run / "config.json"
    text = path.read_text()
    path.write_text(text.replace('"seed": 0', '"seed": 3'))
    with pytest.raises(RunError, match=r'does not match its digest.*remove the line "digest"'):
        kshot.Trained.of_run(run)
    config = json.loads(text)
    del config["digest"]
    path.write_text(json.dumps(config, indent=1))
    assert "digest" not in RunFolder.open(run).config
    kshot.Trained.of_run(run)
    rewrite_inputs = torch.load(run / "inputs.pt", weights_only=True)
    torch.save({**rewrite_inputs, "spec": {**rewrite_inputs["spec"], "way": 7}}, run / "inputs.pt")
    with pytest.raises(RunError, match=r"inputs\.pt: the file is corrupt: its content does not match its digest"):
        load_inputs(run)
    first = {**rewrite_inputs, "version": 1}
    del first["digest"]
    torch.save(first, run / "inputs.pt")
    assert load_inputs(run) is not None


def test_s11_text_of_a_run_can_t_control_the_terminal(run: Path) -> None:
    """An escape sequence in a name or an obstacle would be printed."""
    rewrite(run, lambda plan: plan["learner"].update(name="\x1b[2Jsample-learner"))
    with pytest.raises(RunError, match=r"plan\.learner\.name: got '\\x1b\[2J.*expected text without control") as caught:
        kshot.Trained.of_run(run)
    assert "\x1b" not in str(caught.value)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({"plan": None, "obstacles": ["\x1b]0;x\x07"]}))
    with pytest.raises(RunError, match=r"obstacles\[0\]: got"):
        kshot.Trained.of_run(run)
    (run / "config.json").write_text(json.dumps(config))
    results = json.loads((run / "result.json").read_text())
    results["results"][0]["split"] = "te\x07st"
    Path("r.json").write_text(json.dumps(results))
    with pytest.raises(RunError, match=r"r\.json: results\[0\]\.split: got"):
        kshot.runs.compare("r.json", "r.json")


def test_s12_threads_are_limited(run: Path) -> None:
    """A million threads would end the process."""
    rewrite(run, lambda plan: plan["backend"].update(threads=10**6))
    with pytest.raises(OptionError, match="cpu: got threads=1000000, expected at most") as caught:
        kshot.Trained.of_run(run)
    assert any("run" in note for note in caught.value.__notes__)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("[optimizer]\nlr = -1", "optimizer: lr: got -1.0, expected float above 0"),
        ("[optimizer]\nwarmup = -3", "optimizer: warmup: got -3, expected int from 0"),
        ("[optimizer]\nmomentum = 1", "optimizer: momentum: got 1.0, expected float at least 0 and below 1"),
        ("[optimizer]\nweight_decay = -1\nfactor = 0", "factor: got 0.0, expected float above 0"),
        ("[optimizer]\nlr = nan", "lr: got NaN, expected a number"),
        ("[optimizer]\nevery = 0", "optimizer: every: got 0, expected int from 1"),
        ("[engine]\nmeta_batch = -2", "engine: meta_batch: got -2 (int), expected int from 1"),
        (
            "[engine]\niterations = 100000000000000000000",
            "iterations: got 100000000000000000000 (int), expected int from 0 to 2147483647",
        ),
        (
            "[engine]\niterations = 10000000000",
            "engine: iterations: got 10000000000 (int), expected int from 0 to 2147483647 | None",
        ),
        ("[evaluate]\nepisodes = 0", "evaluate: episodes: got 0, expected int from 1"),
        ("[evaluate]\nbatch = -1", "evaluate: batch: got -1 (int), expected int from 1"),
        ("seed = 100000000000000000000", "seed: got seed 100000000000000000000, expected a whole number of at most 64"),
        ("seed = " + "1" * 5000, "is not TOML"),
        ("notes = " + "[" * 5000, "nested too deeply"),
        ("surprise = 1", "surprise: unknown key"),
    ],
)
def test_s13_a_recipe_is_refused_before_anything_is_computed(line: str, told: str) -> None:
    """Every message names the recipe; all ranges of one section are in one message."""
    recipe = Path("recipe.toml")
    head = 'learner = "sample-learner"\ntasks = "recorded-tasks"\n'
    recipe.write_text(f"{line}\n{head}" if "[" not in line.partition("\n")[0][:1] else f"{head}{line}\n")
    with pytest.raises(OptionError) as caught:
        kshot.runs.train(recipe=recipe, run="run", quiet=True)
    assert told in str(caught.value)
    assert "recipe.toml" in " ".join([str(caught.value), *getattr(caught.value, "__notes__", ())])
    assert BUILT == []
    assert not Path("run").exists()


def test_s13_reading_a_recipe_imports_nothing() -> None:
    """Plugins are imported when they are built."""
    Path("recipe.toml").write_text('learner = "nothing"\ntasks = "recorded-tasks"\n')
    assert configure(layered("recipe.toml", {}, where="train")).learner == {"name": "nothing"}
    assert BUILT == []


def test_s14_a_recipe_writes_to_a_new_folder_only() -> None:
    """Other braces are part of the name."""
    tables = {"learner": "sample-learner", "tasks": "recorded-tasks", "run": "{seed}-{0.__class__}", "seed": 3}
    assert configure(layered(None, tables, where="train")).run == "3-{0.__class__}"
    Path("mine").mkdir()
    Path("mine", "file").touch()
    with pytest.raises(RunError, match="is not empty"):
        kshot.runs.train("sample-learner", "recorded-tasks", run="mine", quiet=True)


def test_s15_listing_imports_no_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disabled plugin can't be built."""
    code = (
        "import kshot, sys; kshot.plugins(); print(sorted(m for m in sys.modules if m.startswith(('kshot_', 'torch'))))"
    )
    listed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert listed.strip() == "[]"
    monkeypatch.setenv("KSHOT_DISABLE", "recorded-tasks")
    with pytest.raises(PluginError, match="KSHOT_DISABLE"):
        kshot.tasks("recorded-tasks")


def test_s16_no_tasks_have_an_address_among_their_options() -> None:
    """So a run can't choose where its data are downloaded from."""
    for plugin in kshot.plugins():
        if plugin.group == "tasks" and plugin.state == "ok":
            names = {option.name for option in options_of(registry.load(plugin.name, "tasks"))}
            assert not names & {"url", "address", "mirror", "host", "sha256", "md5"}, plugin.name


def test_s17_archives_are_refused_before_anything_is_read() -> None:
    """``tests/core/test_archives.py`` has the other forms."""
    from kshot.data import archives

    for name in ("../x.png", "/etc/x.png", "a/../../x.png"):
        with zipfile.ZipFile("a.zip", "w") as archive:
            archive.writestr(name, b"x")
        with pytest.raises(KshotError, match=r"a\.zip"):
            archives.Archive(Path("a.zip"), what="pictures", largest=10)


def test_s18_formats_that_run_programs_are_not_decoded() -> None:
    """PostScript is executed by Ghostscript."""
    pytest.importorskip("PIL")
    from kshot.data.pictures import formats

    assert not {".eps", ".ps", ".pdf"} & set(formats())


def test_s19_a_table_in_the_cache_has_no_objects(caplog: pytest.LogCaptureFixture) -> None:
    """The bytes of the file would be used as addresses in memory."""
    pytest.importorskip("platformdirs")
    import numpy as np

    from kshot.data.tables import Made, open_or_build, open_table

    path = Path("cache.table")
    open_or_build(path, lambda: Made({}, "uint8", (8,), [np.zeros(8)]), name="mine", version=1)
    import hashlib

    from kshot.data import tables

    content = path.read_bytes()
    magic, length, _ = tables._HEAD.unpack(content[: tables._HEAD.size])
    text = content[tables._HEAD.size : tables._HEAD.size + length].replace(b'"|u1"', b'"|O"').replace(b"[8]", b"[1]")
    head = tables._HEAD.pack(magic, len(text), hashlib.blake2b(text, digest_size=16).digest()) + text
    path.write_bytes(head + content[len(head) :])
    assert open_table(path, name="mine", version=1) is None
    assert "expected numbers" in caplog.text
