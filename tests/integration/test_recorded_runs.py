"""The runs that are recorded beside the recipes can be read, and built again, by the code of today."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from scipy import stats

import kshot
from kshot._engine.result import Result
from kshot._engine.run_folder import RunFolder
from kshot.cli import main
from kshot.runs.plan import Plan, build_learner

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
RECORDED = RECIPES / "recorded"
SHARED = Path(os.environ.get("KSHOT_SHARED") or RECIPES.parents[1] / "shared" / "data")
TUNED = ("SGD", "momentum", "RMSprop", "Adam")
RUNS = sorted(path.parent for path in RECORDED.glob("**/config.json"))


def test_there_are_recorded_runs() -> None:
    """Otherwise the tests below would pass by testing nothing."""
    assert len(RUNS) > 20


@pytest.mark.parametrize("run", RUNS, ids=lambda run: str(run.relative_to(RECORDED)))
def test_a_recorded_config_builds_the_same_learner(run: Path) -> None:
    """The options are those of today's plugins, and the parameters have the recorded names and shapes."""
    config = RunFolder.open(run).config
    plan = Plan.of_run(run, config)
    tasks = config["identity"]["tasks"]  # as text in the older runs
    spec = kshot.TaskSpec.from_dict(json.loads(tasks) if isinstance(tasks, str) else tasks)
    learner = build_learner(plan, spec)
    shapes = {name: list(tensor.shape) for name, tensor in learner.state_dict().items()}
    assert shapes == config["identity"]["parameters"]
    for table in (plan.training, *plan.tests):
        assert kshot.info(str(table["name"])).plugin.group == "tasks"


@pytest.mark.parametrize("run", [run for run in RUNS if (run / "result.json").exists()], ids=lambda run: run.name)
def test_a_recorded_result_is_read_back(run: Path) -> None:
    """Its figures are those that were written."""
    text = (run / "result.json").read_text(encoding="utf-8")
    for i, written in enumerate(json.loads(text)["results"]):
        if written["scores"]:
            result = Result.from_json(text, test=i)
            assert result.mean == pytest.approx(written["mean"], rel=1e-5)  # scores are recorded with eight digits


def results(name: str, file: str = "result.json") -> list[Result]:
    """Read the results of all tests of a recorded run."""
    text = (RECORDED / name / file).read_text(encoding="utf-8")
    return [Result.from_json(text, test=i) for i in range(len(json.loads(text)["results"]))]


def seeds(name: str, test: int) -> list[Result]:
    """Read the results of one test for all seeds, in their order."""
    files = ["result.json", *sorted(path.name for path in (RECORDED / name).glob("result-seed-*.json"))]
    return [results(name, file)[test] for file in files]


def over_seeds(values: list[float], digits: int = 3, sign: str = "") -> str:
    """Write a mean of a value per seed with its 95 % t interval; ``sign`` "+" shows a plus too.

    The value of a single seed has no interval, and is marked.
    """
    if len(values) == 1:
        return f"{values[0]:{sign}.{digits}f} (one seed)"
    interval = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return f"{np.mean(values):{sign}.{digits}f} ± {interval:.{digits}f}"


def by_seed(name: str, test: int, other: str, other_test: int) -> str:
    """Write the mean over the seeds that both have of the paired difference of two tests of control tasks."""
    pairs = zip(seeds(name, test), seeds(other, other_test), strict=False)
    return over_seeds([a.minus(b).mean for a, b in pairs], 2, "+")


def percent(result: Result) -> str:
    """Write an accuracy as the tables do."""
    return f"{100 * result.mean:.2f} ± {100 * result.interval:.2f}"


def points(result: Result, reference: Result) -> str:
    """Write a paired difference of accuracies as the tables do."""
    difference = result.minus(reference)
    return f"{100 * difference.mean:+.2f} ± {100 * difference.interval:.2f}"


def minutes(name: str) -> str:
    """Write how long the training of a recorded run took."""
    wall = json.loads((RECORDED / name / "result.json").read_text(encoding="utf-8"))["wall"]["training"]
    return f"{wall / 60:.0f} minutes"


def rows(heading: str) -> dict[str, list[str]]:
    """Return the cells of the first table after a heading of the README, without the first cell of each row, by it."""
    text = (RECIPES / "README.md").read_text(encoding="utf-8").split(f"{heading}\n", 1)[1]
    lines = re.search(r"(?:^\|.*\n)+", text, re.M)
    assert lines is not None
    cells = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in lines[0].splitlines()[2:]]
    return {re.sub(r"\[(.*?)\]\(.*?\)", r"\1", first): others for first, *others in cells}


def test_the_table_of_learned_initialisations_is_that_of_the_recorded_runs() -> None:
    """Accuracies, paired differences to MAML, and costs."""
    table = rows("## Learned initialisations on Omniglot")
    recorded = {name: results(name) for name in table}
    assert len(table) >= 5
    for name, cells in table.items():
        transductive, support = recorded[name]
        assert (transductive.normalisation, support.normalisation) == ("transductive", "support")
        expected = [percent(transductive), percent(support), "", "", minutes(name)]
        if name != "maml-omniglot":
            expected[2:4] = [points(a, b) for a, b in zip(recorded[name], recorded["maml-omniglot"], strict=True)]
        assert cells[:5] == expected, name


def test_the_tables_of_heads_are_those_of_the_recorded_results() -> None:
    """Accuracies of every head on every encoder, and paired differences to prototypical networks on the same encoder.

    Only TIM sees the queries of an episode together.
    """
    tables = rows("## Heads on pretrained encoders"), rows("The same minus protonet on the same encoder, paired:")
    heads = RECORDED / "heads"
    recorded = {path.parent.name for path in heads.glob("*/result.json")}
    listed = set()
    for table, reference in zip(tables, (False, True), strict=True):
        assert len(table) >= 4
        for name, cells in table.items():
            encoder, head = name.split(", ")
            for data, found in (("emoji", cells[:2]), ("orl-faces", cells[2:])):
                run = f"{data}-{encoder}-{head}"
                if run not in recorded:
                    assert found == ["", ""], run
                    continue
                listed.add(run)
                own = results(f"heads/{run}")
                assert [result.episodes for result in own] == [600, 600]
                assert {result.queries for result in own} == {"at_adapt" if head == "tim" else "independent"}
                if reference:
                    protonet = results(f"heads/{data}-{encoder}-protonet")
                    assert found == [points(a, b) for a, b in zip(own, protonet, strict=True)], run
                else:
                    assert found == [percent(result) for result in own], run
    assert listed == recorded


def test_the_table_of_five_shots_is_that_of_the_recorded_runs() -> None:
    """Accuracies, paired differences to MAML, and costs. Reptile is the run of one shot, tested with five."""
    table, maml = rows("### Five shots"), results("maml-omniglot-five-shot")
    assert len(table) >= 5
    for name, cells in table.items():
        own = results(name, "result.json" if name.endswith("-five-shot") else "five-shot.json")
        assert {result.shape["shot"] for result in own} == {5}
        assert [result.normalisation for result in own] == ["transductive", "support"]
        minus = ["", ""] if own[0].mean == maml[0].mean else [points(a, b) for a, b in zip(own, maml, strict=True)]
        assert cells[:5] == [*map(percent, own), *minus, minutes(name)], name


def test_the_table_of_attacked_learners_is_that_of_the_recorded_results() -> None:
    """Four accuracies of each learner and attack, and the paired differences of ADML to MAML."""
    table = rows("### Under attack")
    assert len(table) == 6
    for attack in ("FGSM", "PGD"):
        maml, adml = (results(f"{name}-omniglot", f"attacked-{attack.lower()}.json") for name in ("maml", "adml"))
        assert table[f"MAML, {attack}"] == [percent(result) for result in maml]
        assert table[f"ADML, {attack}"] == [percent(result) for result in adml]
        assert table[f"ADML minus MAML, {attack}"] == [points(a, b) for a, b in zip(adml, maml, strict=True)]


def test_the_table_of_sine_waves_is_that_of_the_recorded_runs() -> None:
    """Errors after 1, 5 and 10 steps over three seeds; Meta-SGD and CAVIA beside MAML on the same waves."""
    table = rows("## Sine waves")
    assert {len(seeds(name, 0)) for name in table} == {3}
    for name, cells in table.items():
        tests = range(len(results(name)))
        errors = [over_seeds([result.mean for result in seeds(name, test)]) for test in tests]
        errors += [""] * (3 - len(errors))
        if name.startswith("maml"):
            difference = ""
        else:
            pairs = zip(seeds(name, 0), seeds("maml-sinusoid", 0), strict=True)
            difference = over_seeds([result.minus(maml).mean for result, maml in pairs], sign="+")
        assert cells[:4] == [*errors, difference], name


def test_the_table_of_imitation_is_that_of_the_recorded_runs() -> None:
    """Success in percent before and after adaptation over three seeds, in the README of the learner."""
    text = (RECIPES.parent / "plugins/mil/README.md").read_text(encoding="utf-8").split("What to expect", 1)[1]
    table = [line.strip("|").split("|")[1:] for line in text.splitlines() if line.startswith("|")][2:]
    names = [f"mil-reach2d{name}" for name in ("", "-bias", "-two-heads", "-observations", "-cloning", "-untrained")]
    for name, cells in zip(names, table, strict=True):
        means = [[100 * float(result.means("success")) for result in seeds(name, test)] for test in (0, 1)]
        expected = [over_seeds(values, 1) for values in means]
        assert {len(values) for values in means} == {3}
        assert [cell.strip() for cell in cells] == expected, name


def test_the_table_of_a_learned_update_rule_is_that_of_the_recorded_runs() -> None:
    """Meta-LSTM beside gradient descent from the same initial parameters and beside MAML, on the same episodes."""
    table = rows("## A learned update rule on Omniglot")
    names = [name for name in ("", "-five-shot") if (RECORDED / f"meta-lstm-omniglot{name}").exists()]
    learned, descent = (
        [result for name in names for result in results(f"meta-lstm-omniglot{name}", file)]
        for file in ("result.json", "gradient-descent.json")
    )
    maml = [result for name in names for result in results(f"maml-omniglot{name}")]
    assert [r.normalisation for r in learned] == ["transductive", "support"] * len(names)
    assert table == {
        "meta-lstm": [percent(result) for result in learned],
        "gradient descent from the same initial parameters": [percent(result) for result in descent],
        "meta-lstm minus gradient descent": [points(a, b) for a, b in zip(learned, descent, strict=True)],
        "MAML": [percent(result) for result in maml],
        "meta-lstm minus MAML": [points(a, b) for a, b in zip(learned, maml, strict=True)],
    }


def test_the_table_of_learned_optimizers_is_that_of_the_recorded_runs() -> None:
    """Losses of l2l for each seed, of each tuned optimizer, and the paired difference to the best of these."""
    table = rows("## A learned optimizer on networks for digits")
    tuned = {name: results("l2l-digit-nets", f"tuned-{name.lower()}.json") for name in TUNED}
    expected = {f"tuned {name}": [f"{result.mean:.2g}" for result in tuned[name]] for name in TUNED}
    learned, differences = [], []
    for test in range(6):
        of_seeds = seeds("l2l-digit-nets", test)
        best = min((results[test] for results in tuned.values()), key=lambda result: result.mean)
        less = [result.minus(best).mean for result in of_seeds]
        interval = stats.t.ppf(0.975, len(less) - 1) * np.std(less, ddof=1) / len(less) ** 0.5
        learned.append(" / ".join(f"{result.mean:.2g}" for result in of_seeds))
        differences.append(f"{np.mean(less):+.2g} ± {interval:.1g}")
    expected |= {"l2l, three seeds": learned, "l2l minus the best tuned one": differences}
    assert table == expected


def test_the_table_of_navigation_is_that_of_the_recorded_runs() -> None:
    """Returns before and after 1, 2 and 3 updates, and the difference to MAML on the same goals."""
    table = rows("### Point navigation")
    maml = "maml-rl-navigation2d"
    assert {maml, "metasgd-rl-navigation2d"} < set(table)
    for name, cells in table.items():
        if name.startswith("published"):
            continue
        expected = [over_seeds([result.mean for result in seeds(name, test)], 2) for test in range(4)]
        difference = by_seed(name, 1, maml, 1) if name != maml else ""
        assert cells[:5] == [*expected, difference], name


def test_the_table_of_families_is_that_of_the_recorded_runs() -> None:
    """Returns, the gain by an update, and the difference to one policy for all tasks."""
    table = rows("### Cart poles and pendulums")
    assert {"maml-rl-cartpole", "maml-rl-pendulum"} <= set(table)
    for name, cells in table.items():
        expected = [over_seeds([result.mean for result in seeds(name, test)], 2) for test in range(4)]
        expected.append(by_seed(name, 1, name, 0))
        other = f"{name}-pretrained"
        expected.append(by_seed(name, 1, other, 0) if other in table else "")
        assert cells[:6] == expected, name


def test_the_table_of_regret_is_that_of_the_recorded_runs() -> None:
    """Regret of 10 pulls, for policies trained on each number of arms and for one trained on five."""
    table = rows("### Regret on bandits")
    assert "5 arms" in table
    for name, cells in table.items():
        if trained := re.match(r"(\d+) arms", name):
            folder = "maml-rl-bandits" + ("" if trained[1] == "5" else f"-{trained[1]}-arms")
            tests = range(4)
        else:
            live = re.match(r"(\d+) of 20", name)
            assert live is not None, name
            folder = "maml-rl-bandits-many"
            first = 4 * [2, 5, 10, 15, 20].index(int(live[1]))
            tests = range(first, first + 4)
        expected = [over_seeds([float(r.scores["regret"].mean()) for r in seeds(folder, test)], 2) for test in tests]
        assert cells[:4] == expected, name


def test_the_table_without_labels_is_that_of_the_recorded_runs() -> None:
    """Accuracies of encoders, of what is trained on their clusters, and of the baselines that these must exceed."""
    table = rows("## Without labels")
    maml, maml20 = results("cactus-maml-omniglot"), results("cactus-maml-omniglot-20way")
    recorded = {
        "nearest pixels": results("pixels-omniglot"),
        "training from scratch": [*results("scratch-omniglot"), *results("scratch-omniglot-20way")],
        "autoencoder, nearest mean": results("autoencoder-omniglot"),
        "SimCLR, nearest mean": results("simclr-omniglot"),
        "CACTUs-ProtoNet": results("cactus-protonet-omniglot"),
        "CACTUs-MAML, transductive": [*maml[:2], *maml20[:2]],
        "CACTUs-MAML, by the support": [*maml[2:], *maml20[2:]],
    }
    shapes = [(5, 1), (5, 5), (20, 1), (20, 5)]
    for name, found in recorded.items():
        assert [(result.shape["way"], result.shape["shot"]) for result in found] == shapes, name
        assert table[name][:4] == [percent(result) for result in found], name
    for name, published in (("ProtoNet", (68.1, 83.6, 47.8, 66.3)), ("MAML, transductive", (68.8, 87.8, 48.1, 73.4))):
        for i, result in enumerate(recorded[f"CACTUs-{name}"]):
            baselines = [recorded[row][i] for row in ("nearest pixels", "training from scratch")]
            assert 100 * result.mean >= published[i], name
            assert all(result.mean - result.interval > other.mean + other.interval for other in baselines), name


def scores(result: Result) -> NDArray[np.float64]:
    """Return the accuracies of the episodes.

    ``Result.minus`` takes results of the same tasks only. Tasks before and after the external set has grown differ in
    this set, which a test does not use.
    """
    return np.asarray(result.scores["accuracy"], np.float64)


def concept_tables() -> dict[str, list[list[str]]]:
    """Return the rows of the two tables of learning in concept space, from the recorded runs."""

    def of(name: str, kind: str) -> list[Result]:
        files = [f"{kind}.json", *(f"{kind}-seed-{seed}.json" for seed in (1, 2))]
        return [results(name, file)[0] for file in files]

    def difference(first: list[Result], second: list[Result]) -> tuple[list[str], str]:
        each = [scores(a) - scores(b) for a, b in zip(first, second, strict=True)]
        half = [stats.t.ppf(0.975, len(d) - 1) * np.std(d, ddof=1) / len(d) ** 0.5 for d in each]
        cells = [f"{100 * np.mean(d):+.2f} ± {100 * h:.2f}" for d, h in zip(each, half, strict=True)]
        return cells, over_seeds([100 * float(np.mean(d)) for d in each], 2, "+")

    with_external, without = of("concept-omniglot", "result"), of("concept-omniglot-without", "result")
    grown, old, kept = (
        of("concept-omniglot-grown", "result"),
        of("concept-omniglot", "val"),
        of("concept-omniglot-grown", "val"),
    )
    tables: dict[str, list[list[str]]] = {"weights": [], "grown": []}
    for table, pairs in (("weights", [(with_external, without)]), ("grown", [(kept, old), (grown, with_external)])):
        columns: list[list[str]] = [["0", "1", "2", "all"]]
        for first, second in pairs:
            cells, total = difference(first, second)
            shown = [[*map(percent, runs), ""] for runs in (first, second)]
            columns += [*(shown if table == "weights" else shown[::-1]), [*cells, total]]
        tables[table] = [list(row) for row in zip(*columns, strict=True)]
    return tables


def test_the_tables_of_concept_space_are_those_of_the_recorded_results() -> None:
    """Accuracies with and without an external set, and before and after it has grown, of three seeds."""
    tables = concept_tables()
    for heading, name in (
        ("## Learning in concept space", "weights"),
        ("trained on at first, *new tasks* are", "grown"),
    ):
        text = (RECIPES / "README.md").read_text(encoding="utf-8").split(heading, 1)[1]
        lines = re.search(r"(?:^\|.*\n)+", text, re.M)
        assert lines is not None
        cells = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in lines[0].splitlines()[2:]]
        assert cells == tables[name]
    assert all(result.episodes == 600 for result in results("concept-omniglot"))


def accuracy(name: str, test: int = 0) -> Callable[[], str]:
    """Return the function that writes the accuracy in percent: of seed 0, or of all seeds if there are three."""

    def written() -> str:
        if len(found := seeds(name, test)) >= 3:
            return over_seeds([100 * result.mean for result in found], 2)
        return percent(found[0])

    return written


def score(name: str, test: int = 0, *, digits: int = 2, unit: float = 1, of: str = "") -> Callable[[], str]:
    """Return the function that writes the mean over the seeds of a score, by default the one of the headline."""

    def written() -> str:
        found = seeds(name, test)
        return over_seeds([unit * float(result.means(of) if of else result.mean) for result in found], digits)

    return written


def median(name: str, *, unit: float) -> Callable[[], str]:
    """Return the function that writes the median over the seeds of a headline score, and the least and the greatest."""

    def written() -> str:
        values = [unit * result.mean for result in seeds(name, 0)]
        return f"{np.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"

    return written


def instance(name: str, number: int) -> Callable[[], str]:
    """Return the function that writes the accuracy in percent at an instance of a class, of seed 0."""

    def written() -> str:
        text = (RECORDED / name / "result.json").read_text(encoding="utf-8")
        curve = json.loads(text)["results"][0]["summary"]["accuracy_by_instance"]
        return f"{100 * curve['mean'][number - 1]:.2f} ± {100 * curve['interval'][number - 1]:.2f}"

    return written


def less(name: str, other: str, file: str = "result.json") -> Callable[[], str]:
    """Return the function that writes a paired difference of accuracies in points, of the first tests of seed 0."""
    return lambda: points(results(name)[0], results(other, file)[0])


SYSTEMS: Mapping[str, tuple[str, Callable[[], str]]] = {
    "siamese networks": ("siamese-omniglot", accuracy("siamese-omniglot")),
    "prototypical networks": ("protonet-omniglot-60way", accuracy("protonet-omniglot-60way")),
    "Gaussian prototypical networks": ("gaussian-protonet-omniglot", accuracy("gaussian-protonet-omniglot")),
    "semi-supervised prototypical networks": (
        "semi-protonet-omniglot-masked",
        accuracy("semi-protonet-omniglot-masked", 3),
    ),
    "zero-shot prototypical networks": ("semantics-omniglot", accuracy("semantics-omniglot")),
    "matching networks": ("matchingnet-omniglot", accuracy("matchingnet-omniglot")),
    "relation networks": ("relationnet-omniglot", accuracy("relationnet-omniglot", 4)),
    "zero-shot relation networks": ("semantics-omniglot-relationnet", accuracy("semantics-omniglot-relationnet")),
    "neural Turing machine": ("ntm-copy-paper", median("ntm-copy-paper", unit=160)),
    "MANN": ("mann-omniglot-long", instance("mann-omniglot-long", 2)),
    "MAML": ("maml-omniglot-long", accuracy("maml-omniglot-long")),
    "FOMAML": ("fomaml-omniglot", accuracy("fomaml-omniglot")),
    "Reptile": ("reptile-omniglot-long", accuracy("reptile-omniglot-long")),
    "Meta-SGD": ("metasgd-omniglot", accuracy("metasgd-omniglot")),
    "CAVIA": ("cavia-sinusoid", score("cavia-sinusoid", digits=3)),
    "ADML": ("adml-omniglot", lambda: percent(results("adml-omniglot", "attacked-fgsm.json")[3])),
    "gradient agreement": (
        "gradient-agreement-omniglot",
        less("gradient-agreement-omniglot", "maml-omniglot-outliers"),
    ),
    "TAML, entropy": ("taml-omniglot", accuracy("taml-omniglot")),
    "TAML, inequality": ("taml-omniglot-theil", accuracy("taml-omniglot-theil")),
    "MAML for policies": ("maml-rl-navigation2d", score("maml-rl-navigation2d", 1)),
    "Meta-SGD for policies": ("metasgd-rl-navigation2d", score("metasgd-rl-navigation2d", 1)),
    "gradient descent by gradient descent": ("l2l-quadratics", score("l2l-quadratics", digits=3)),
    "meta-LSTM": ("meta-lstm-omniglot", less("meta-lstm-omniglot", "meta-lstm-omniglot", "gradient-descent.json")),
    "meta imitation learning": ("mil-reach2d", score("mil-reach2d", 1, unit=100, of="success")),
    "CACTUs": ("cactus-maml-omniglot", accuracy("cactus-maml-omniglot")),
    "learning in concept space": ("concept-omniglot", accuracy("concept-omniglot")),
}
"""The systems of the canon: the recorded run whose cost is shown, and the function that writes its figure."""


def test_the_table_of_all_systems_is_that_of_the_recorded_runs() -> None:
    """Each of the 26 systems has a paper, a figure with its interval, a cost and a command."""
    table = rows("## All systems in one place")
    assert list(table) == list(SYSTEMS)
    assert len(table) == 26
    for name, (paper, measured, _published, ours, cost, command) in table.items():
        run, figure = SYSTEMS[name]
        assert (ours, cost) == (figure(), cost_of(run)), name
        assert re.search(r"\b(19|20)\d\d\b", paper), name
        assert measured, name
        assert command.startswith("`kshot train "), name


def cost_of(name: str) -> str:
    """Write how long the training of a recorded run took: in seconds if it was shorter than two minutes."""
    wall = json.loads((RECORDED / name / "result.json").read_text(encoding="utf-8"))["wall"]["training"]
    return f"{wall:.0f} seconds" if wall < 120 else f"{wall / 60:.0f} minutes"


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_command_of_each_system_starts(system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of its trainings does an iteration and tests on two episodes of real data, in the recipe's run folder."""
    if not (SHARED / "omniglot" / "images_background.zip").exists():
        pytest.skip("the full Omniglot is not at ../shared/data/omniglot")
    monkeypatch.setenv("KSHOT_OMNIGLOT", str(SHARED / "omniglot"))
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    try:
        for command in rows("## All systems in one place")[system][-1].strip("`").split(" && "):
            program, *arguments, flag, recipe = command.split()
            assert (program, flag) == ("kshot", "--recipe")
            text = (RECIPES.parent / recipe).read_text(encoding="utf-8")
            quick = ["--learner.strategy=auto"] if 'strategy = "compiled"' in text else []
            few = ["--iterations=1", "--evaluate.episodes=2", "--backend.threads=1", "--quiet", *quick]
            done = CliRunner().invoke(main, [*arguments, f"--recipe={RECIPES.parent / recipe}", *few])
            assert done.exit_code == 0, done.output
    finally:
        torch.set_num_threads(threads)
