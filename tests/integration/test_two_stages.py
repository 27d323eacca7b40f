"""Two-stage recipes, and several options of one learner tested on the same episodes: semi-protonet on toy tasks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

import kshot
from kshot._engine.run_folder import load_checkpoint
from kshot.cli import main

for plugin in ("kshot_semi_protonet", "kshot_semi_supervised", "kshot_toy", "kshot_protonet"):
    pytest.importorskip(plugin)

ONE = """
title = "the encoder"
learner = {name = "semi-protonet", refine = "none", width = 16}
run = "one-{seed}"
[tasks]
name = "semi-supervised"
of = "toy"
query = 2
[training]
way = 10
unlabelled = 0
distractors = 0
[engine]
iterations = 5
[backend]
threads = 1
[evaluate]
episodes = 30
[[test]]
learner = {refine = "none"}
[[test]]
learner = {refine = "soft"}
[[test]]
distractors = 3
learner = {refine = "none"}
[[test]]
distractors = 3
learner = {refine = "soft"}
"""
TWO = """
title = "the mask, on classes that the encoder has not seen"
learner = {name = "semi-protonet", refine = "masked", train_encoder = false, width = 16}
run = "two-{seed}"
init_from = "one-{seed}"
tasks = {name = "semi-supervised", of = "toy", query = 2, distractors = 3}
training = {way = 5, unlabelled = 5, distractors = 3}
engine = {iterations = 4, split = "val", checkpoint_every = 2}
backend = {threads = 1}
evaluate = {episodes = 30}
test = [{learner = {refine = "soft"}}, {}]
"""


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A current directory of its own with both recipes; the thread count is put back."""
    monkeypatch.chdir(tmp_path)
    Path("one.toml").write_text(ONE)
    Path("two.toml").write_text(TWO)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def cli(*args: str, code: int = 0) -> Result:
    done = CliRunner().invoke(main, list(args))
    assert done.exit_code == code, done.output
    return done


def parameters(run: str) -> dict[str, torch.Tensor]:
    newest = sorted(Path(run, "checkpoints").glob("*.pt"))[-1]
    found: dict[str, torch.Tensor] = load_checkpoint(newest)["learner"]
    return found


def results(run: str) -> list[kshot.Result]:
    written = json.loads(Path(run, "result.json").read_text())
    return [kshot.Result.from_json(json.dumps(result)) for result in written["results"]]


def test_the_second_stage_begins_from_the_first_of_its_seed_and_changes_its_own_part_only() -> None:
    """Stage 2 fits the mask over the encoder of stage 1, bit for bit, and says what it took."""
    for seed in ("3", "4"):
        cli("train", "--recipe=one.toml", f"--seed={seed}", "--quiet")
    told = cli("train", "--recipe=two.toml", "--seed=4").stderr
    assert "starting from one-4 after 5 iterations: 11 of 11 tensors" in told
    first, second = parameters("one-4"), parameters("two-4")
    assert first.keys() == second.keys()
    same = {name for name in first if torch.equal(first[name], second[name])}
    assert same == {n for n in first if not n.startswith("mask")}
    assert not torch.equal(parameters("one-3")["encoder.net.1.weight"], first["encoder.net.1.weight"])
    config = json.loads(Path("two-4/config.json").read_text())
    assert config["plan"]["init_from"] == "one-4"
    assert config["init_from"]["checkpoint"] == str(Path("one-4/checkpoints/00000005.pt"))


def test_a_learner_of_another_name_gives_what_it_has() -> None:
    """An encoder trained by protonet serves semi-protonet; the rest is said to stay as initialised."""
    common = ("--backend.threads=1", "--evaluate.episodes=5", "--iterations=2")
    cli("train", "protonet", "toy", *common, "--run=p", "--quiet")
    view = ("semi-protonet", "semi-supervised", "--tasks.of=toy", "--learner.refine=masked", "--training.unlabelled=5")
    told = cli("train", *view, *common, "--init-from=p", "--run=s").stderr
    left = "log_radius, mask.0.weight, mask.0.bias, mask.2.weight, mask.2.bias"
    assert f"starting from p after 2 iterations: 6 of 11 tensors; as initialised: {left}\n" in told


def test_each_test_is_called_by_what_is_its_own_and_compared_on_its_episodes() -> None:
    """What is printed and written is the paired difference of the results themselves."""
    out = cli("train", "--recipe=one.toml", "--quiet").stdout.splitlines()
    names = ["refine none", "refine soft", "refine none, distractors 3", "refine soft, distractors 3"]
    assert [line.partition(": ")[0] for line in out[:4]] == names
    none, soft, none_3, soft_3 = results("one-0")
    assert out[4] == f"{names[1]} against {names[0]}: {soft.minus(none)}"
    assert out[5] == f"{names[3]} against {names[2]}: {soft_3.minus(none_3)}"
    assert soft.mean != none.mean
    written = json.loads(Path("one-0/result.json").read_text())
    assert written["labels"] == names
    assert [d["mean"] for d in written["differences"]] == [soft.minus(none).mean, soft_3.minus(none_3).mean]


def test_a_test_with_options_is_what_the_same_code_does() -> None:
    """``learner_options``, nothing more."""
    cli("train", "--recipe=one.toml", "--quiet")
    view = {"of": kshot.tasks("toy"), "query": 2}
    training = kshot.tasks("semi-supervised", way=10, unlabelled=0, **view)
    learner = kshot.learner("semi-protonet", training.spec, refine="none", width=16)
    engine = kshot.Engine(learner, training, backend=kshot.backend("cpu", threads=1))
    engine.train(5)
    tested = engine.evaluate(30, tasks=kshot.tasks("semi-supervised", **view), learner_options={"refine": "soft"})
    assert tested.mean == results("one-0")[1].mean


def test_an_evaluation_changes_the_learner_of_every_test() -> None:
    """A flag wins over the recipe's test; tests that it makes alike are one."""
    cli("train", "--recipe=one.toml", "--quiet")
    once = results("one-0")
    out = json.loads(cli("evaluate", "one-0", "--learner.refine=soft", "--quiet", "--json").stdout)
    assert [result["mean"] for result in out["results"]] == [once[1].mean, once[3].mean]
    assert out["labels"] == ["", "distractors 3"]


def test_a_run_cut_off_before_its_first_checkpoint_begins_from_the_same_parameters_again() -> None:
    """Resuming gives the bits of the unbroken run, or says that what it began from is no longer there."""
    cli("train", "--recipe=one.toml", "--quiet")
    cli("train", "--recipe=two.toml", "--quiet")
    unbroken = parameters("two-0")
    for checkpoint in Path("two-0/checkpoints").iterdir():
        checkpoint.unlink()
    cli("resume", "two-0", "--quiet")
    assert all(torch.equal(unbroken[name], t) for name, t in parameters("two-0").items())
    for checkpoint in Path("two-0/checkpoints").iterdir():
        checkpoint.unlink()
    Path("one-0").rename("elsewhere")
    assert "one-0" in cli("resume", "two-0", "--quiet", code=6).stderr
    cli("train", "--recipe=one.toml", "--quiet", "--run=one-0", "--engine.iterations=6")
    refused = cli("resume", "two-0", "--quiet", code=6).stderr
    assert "two-0 started from one-0/checkpoints/00000005.pt, but one-0 now has other parameters" in refused


def test_a_resumed_run_with_a_checkpoint_needs_no_first_stage() -> None:
    """Its own parameters go on, wherever they began."""
    cli("train", "--recipe=one.toml", "--quiet")
    cli("train", "--recipe=two.toml", "--quiet")
    unbroken = parameters("two-0")
    Path("two-0/checkpoints/00000004.pt").unlink()
    Path("one-0").rename("elsewhere")
    cli("resume", "two-0", "--quiet")
    assert all(torch.equal(unbroken[name], t) for name, t in parameters("two-0").items())
    cli("evaluate", "two-0", "--quiet")


WRONG: list[tuple[Any, int, str]] = [
    (('refine = "soft"', 'refine = "sotf"'), 2, "did you mean 'soft'"),
    (('refine = "soft"', "width = 8"), 2, "got width 8, which makes a learner with other parameters"),
    (('learner = {refine = "soft"}', 'learner = {refine = "masked"}\nunlabelled = 0'), 3, "requires unlabelled"),
    (
        ('run = "one-{seed}"', 'run = "one-{seed}"\ninit_from = "nowhere"'),
        6,
        "nowhere: there is no such run",
    ),
]


@pytest.mark.parametrize(("change", "code", "message"), WRONG, ids=lambda v: v if isinstance(v, str) else "")
def test_a_wrong_test_or_first_stage_is_refused_before_any_training(change: Any, code: int, message: str) -> None:
    """Not after an hour of it, when the tests come."""
    Path("one.toml").write_text(ONE.replace(*change, 1))
    for command in (("check",), ("train", "--quiet")):
        done = cli(*command, "--recipe=one.toml", code=code)
        assert message in done.stderr
    assert not Path("one-0").exists()
