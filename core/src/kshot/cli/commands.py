"""Define the commands that train and compare. Each reads its arguments, makes one call, and prints text or JSON."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kshot.cli.console import CHANGEABLE, EPILOG, FLAGS, Group, SectionCommand, print_json, say, tell
from kshot.cli.options import (
    EVALUATE_HELP,
    PATH,
    RESUME_HELP,
    SECTIONS_HELP,
    as_json,
    import_from_option,
    quiet_flag,
    with_configuration,
)
from kshot.errors import MisfitError

if TYPE_CHECKING:
    from kshot.runs.recipe import Config
    from kshot.runs.run import Run


def config_of(ctx: click.Context, run: str | None = None, **given: Any) -> Config:
    """Return the configuration of a recipe, arguments and flags."""
    from kshot.cli.flags import configured

    plain = {name: value for name, value in given.items() if name not in ("recipe", "import_from")}
    return configured(given["recipe"], ctx.meta[FLAGS], run=run, **plain)


@click.group(cls=Group, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="kshot", message="kshot %(version)s")
def main() -> None:
    """Train, test and use learners that learn new tasks from a few examples.

    Begin with: kshot train protonet omniglot. A learner and tasks are plugins, which are installed separately.
    """


@main.command("list")
@as_json
def list_(json_: bool) -> None:
    """List all plugins and their states, without importing them."""
    from kshot.cli import show
    from kshot.registry import plugins

    listed = plugins()
    if json_:
        print_json([show.plugin_dict(plugin) for plugin in listed])
    else:
        tell(show.plugin_table(listed))


@main.command()
@click.argument("name")
@as_json
def info(name: str, json_: bool) -> None:
    """Show the documentation and the options of the plugin NAME."""
    from kshot import registry
    from kshot.cli import show

    description = registry.info(name)
    factory = registry.load(description.plugin.name, description.plugin.group)
    if json_:
        print_json(show.info_dict(description, factory))
    else:
        tell(show.info_text(description, factory))


@main.command()
@as_json
@click.pass_context
def doctor(ctx: click.Context, json_: bool) -> None:
    """Import every plugin and report every problem.

    The exit code is 4 if any plugin has a problem.
    """
    from kshot.cli import show

    report = show.examine()
    if json_:
        print_json(report)
    else:
        tell(show.doctor_text(report))
    ctx.exit(0 if report["ok"] else 4)


@main.command(cls=SectionCommand, epilog=SECTIONS_HELP)
@with_configuration
@as_json
@click.pass_context
def check(ctx: click.Context, /, json_: bool, **given: Any) -> None:
    """Check whether LEARNER and TASKS fit, without training.

    Learner and tasks are built and episodes of every split are sampled. All reasons why they do not fit are printed.
    """
    from kshot.registry.modules import importing
    from kshot.runs.plan import Plan, build_tasks, listed, tell_limits
    from kshot.runs.runner import misfits

    plan = Plan.of(config_of(ctx, **given))
    with importing(given["import_from"]):
        wanted, (plan, training, tests) = plan, build_tasks(plan, new=True)
        tell_limits(wanted, plan)
        reasons = misfits(plan, training, tests)
    if json_:
        specs = {"training": training.spec.to_dict(), "tests": [test.spec.to_dict() for test in tests]}
        print_json({"fits": not reasons, "reasons": reasons, "own": plan.own, **specs})
    elif not reasons:
        own = f" (training defaults of the learner: {listed(plan.own)})" if plan.own else ""
        tell(f"{plan.learner['name']} fits {plan.training['name']}{own}")
    else:
        lines = "".join(f"\n  - {reason}" for reason in reasons)
        say(f"kshot: {plan.learner['name']} and {plan.training['name']} don't fit:{lines}")
    ctx.exit(MisfitError.exit_code if reasons else 0)


@main.command(cls=SectionCommand, epilog=SECTIONS_HELP)
@with_configuration
@click.option("--seeds", metavar="A,B", help="Train one run for each of these seeds.")
@click.option("--splits", type=int, metavar="N", help="Train on N divisions of a folder, with other test classes each.")
@click.option("--run", metavar="DIR", help="Run folder to write.  [default: runs/LEARNER-TASKS-SEED]")
@click.option("--no-run", is_flag=True, help="Write no run folder.")
@quiet_flag
@as_json
@click.pass_context
def train(
    ctx: click.Context, /, seeds: str | None, splits: int | None, run: str | None, no_run: bool, quiet: bool,
    json_: bool, **given: Any,
) -> None:  # fmt: skip
    """Train LEARNER on TASKS, then test it.

    The configuration, the checkpoints and the result are written to a run folder.
    """
    from kshot.cli.outcomes import finish

    if run is not None and no_run:
        raise click.UsageError("got --run and --no-run, expected at most one of them")
    if seeds is not None and given["seed"] is not None:
        raise click.UsageError("got --seed and --seeds, expected at most one of them")
    if splits is not None:
        if seeds is not None:
            raise click.UsageError("got --seeds and --splits, expected at most one of them")
        train_splits(ctx, splits, run, no_run, quiet, json_, given)
        return
    if seeds is not None:
        train_each(ctx, seeds, run, no_run, quiet, json_, given)
        return
    from kshot.registry.modules import importing
    from kshot.runs.plan import Plan
    from kshot.runs.runner import folder_of, train_plan

    config = config_of(ctx, run, **given)
    folder = None if no_run else folder_of(config)
    with importing(given["import_from"]):
        plan = Plan.of(config)
        finish(ctx, lambda: train_plan(plan, folder, quiet=quiet), folder, json_)


def train_each(
    ctx: click.Context, seeds: str, run: str | None, no_run: bool, quiet: bool, json_: bool, given: dict[str, Any]
) -> None:
    """Train once for each seed, and print the result of each run and the mean over seeds."""
    from kshot.runs.calls import check_seeds
    from kshot.runs.comparison import over_seeds
    from kshot.runs.runner import folder_of

    try:
        numbers = [int(seed) for seed in seeds.split(",")]
    except ValueError:
        raise click.UsageError(f"--seeds: got {seeds!r}, expected whole numbers with commas between them") from None
    configs = [config_of(ctx, run, **{**given, "seed": seed}) for seed in numbers]
    check_seeds(numbers, [] if no_run else [folder_of(config) for config in configs])
    runs = train_all(ctx, configs, no_run, quiet, json_, given["import_from"])
    if json_:
        print_json([run.to_dict(episodes=False) for run in runs])
    elif len(runs) > 1:
        for line in over_seeds([run.results for run in runs], runs[0].labels):
            tell(line)


def train_splits(
    ctx: click.Context, splits: int, run: str | None, no_run: bool, quiet: bool, json_: bool, given: dict[str, Any]
) -> None:
    """Train once on each division of a folder, and print the result of each run and the mean over divisions."""
    from kshot.runs.cross_validation import CrossValidation, folded

    config = config_of(ctx, run, **given)
    configs = [folded(config, (i, splits)) for i in range(max(splits, 1))]
    runs = train_all(ctx, configs, no_run, quiet, json_, given["import_from"])
    outcome = CrossValidation(tuple(runs))
    if json_:
        print_json(outcome.to_dict())
    else:
        tell(str(outcome))


def train_all(
    ctx: click.Context, configs: Sequence[Config], no_run: bool, quiet: bool, json_: bool, import_from: Path | None
) -> list[Run]:
    """Train and test one run for each configuration, after all of them were planned, and print each result."""
    from kshot.cli.outcomes import finish
    from kshot.registry.modules import importing
    from kshot.runs.plan import Plan
    from kshot.runs.runner import folder_of, train_plan

    runs: list[Run] = []
    with importing(import_from):
        plans = [Plan.of(config) for config in configs]
        for plan, config in zip(plans, configs, strict=True):
            folder = None if no_run else folder_of(config)
            runs.append(finish(ctx, partial(train_plan, plan, folder, quiet=quiet), folder, None if json_ else False))
    return runs


@main.command(cls=SectionCommand, epilog=RESUME_HELP)
@click.argument("run", type=PATH)
@import_from_option
@quiet_flag
@as_json
@click.pass_context
def resume(ctx: click.Context, run: Path, import_from: Path | None, quiet: bool, json_: bool) -> None:
    """Continue an interrupted training from its newest checkpoint.

    RUN is the run folder. After the training, the learner is tested, as kshot train does.
    """
    from kshot.cli.flags import put_flags
    from kshot.cli.outcomes import finish
    from kshot.runs import resume as do
    from kshot.runs.recipe import Table

    changes: Table = {}
    put_flags(changes, ctx.meta[FLAGS], ("backend",))
    backend = changes.get("backend", {})
    finish(ctx, lambda: do(run, backend=backend, quiet=quiet, import_from=import_from), run, json_)


@main.command(cls=SectionCommand, epilog=EVALUATE_HELP)
@click.argument("run", type=PATH)
@click.option("--output", type=PATH, metavar="FILE.json", help="Also write the scores of every episode to this file.")
@click.option("--disjoint", is_flag=True, help="Test on episodes that share no example; they may be few.")
@import_from_option
@quiet_flag
@as_json
@click.pass_context
def evaluate(
    ctx: click.Context, run: Path, output: Path | None, disjoint: bool, import_from: Path | None, quiet: bool,
    json_: bool,
) -> None:  # fmt: skip
    """Test the learner of RUN again, also with other options.

    RUN is a run folder, which is not changed.
    """
    from kshot._engine.run_folder import write_json
    from kshot.cli.flags import put_flags
    from kshot.cli.outcomes import tell_outcome
    from kshot.runs.recipe import Table
    from kshot.runs.runner import evaluate_run

    changes: Table = {}
    put_flags(changes, ctx.meta[FLAGS], CHANGEABLE)
    if disjoint:
        changes["evaluate"] = {**changes.get("evaluate", {}), "disjoint": True}
    outcome = evaluate_run(run, changes, quiet=quiet, import_from=import_from)
    if output is not None and outcome.rank == 0:
        write_json(output, outcome.to_dict(episodes=True))
    tell_outcome(outcome, json_)


@main.command()
@click.argument("runs", nargs=-1, required=True, type=PATH, metavar="RUN RUN...")
@click.option("--csv", type=PATH, metavar="FILE.csv", help="Also write the rows to this file, as CSV.")
@click.option("--markdown", type=PATH, metavar="FILE.md", help="Also write the table to this file, in Markdown.")
@as_json
def compare(runs: tuple[Path, ...], csv: Path | None, markdown: Path | None, json_: bool) -> None:
    """Compare the results of several runs on the same episodes.

    Print a table of the results, and the difference of each run from the first one. The differences are paired: they
    are computed for each episode and then averaged, so their 95 % intervals are small. RUN is a run folder, or a file
    that kshot evaluate --output has written. Runs that differ only in their seeds share a row; its interval is over
    the seeds.
    """
    from kshot._engine.run_folder import write_text
    from kshot.runs import compare as do

    comparison = do(*runs)
    for path, text in ((csv, comparison.to_csv), (markdown, comparison.to_markdown)):
        if path is not None:
            write_text(path, f"{text().rstrip()}\n")
    if json_:
        print_json(comparison.to_dict())
    else:
        tell(str(comparison))
