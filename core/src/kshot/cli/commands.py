"""Define the commands. Each reads its arguments, makes one call, and prints text or JSON."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from kshot.cli.console import CHANGEABLE, EPILOG, Group, RunCommand, SectionCommand, print_json, say, tell
from kshot.cli.flags import FLAGS
from kshot.cli.outcomes import finish, tell_outcome
from kshot.errors import MisfitError

if TYPE_CHECKING:
    from kshot.runs.recipe import Config
    from kshot.runs.run import Run

F = TypeVar("F", bound=Callable[..., Any])
PATH = click.Path(path_type=Path)

SECTIONS_HELP = """\b
Options of plugins and of the engine have the same names as in Python
(kshot info NAME lists those of a plugin):
  --learner.NAME=VALUE     options of the learner; for a learner in it:
                           --learner.inner=reptile
                           --learner.inner.inner_lr=0.1
  --tasks.NAME=VALUE       options of the tasks
  --training.NAME=VALUE    options of the tasks that differ in training
  --optimizer.NAME=VALUE   name, lr, schedule, every, factor, warmup, clip,
                           momentum, weight_decay
  --engine.NAME=VALUE      meta_batch, chunk, iterations, split,
                           validate_every, validation_episodes,
                           validation_split, patience, checkpoint_every,
                           checkpoint_seconds, keep
  --backend.NAME=VALUE     options of the backend, e.g. precision
  --evaluate.NAME=VALUE    episodes, split, batch
  --hook.NAME.OPTION=VALUE options of an extra hook
Values are read as TOML: 5, 1e-3, true, [1, 2], none, text. A recipe is a
TOML file with the same names: learner = "protonet", [tasks] way = 5, ...
It has a table [[test]] with options of the tasks for each test, and in
test.learner the options of the learner that differ in this test. Flags
override the recipe. In its run and init_from, {seed} stands for the seed."""


def as_json(command: F) -> F:
    """Add the flag ``--json`` to a command."""
    return click.option("--json", "json_", is_flag=True, help="Print JSON on standard output.")(command)


def quiet_flag(command: F) -> F:
    """Add the flag ``--quiet`` to a command."""
    return click.option("--quiet", is_flag=True, help="Print no progress, only the result.")(command)


def import_from_option(command: F) -> F:
    """Add the option ``--import-from`` to a command."""
    return click.option(
        "--import-from",
        type=PATH,
        metavar="FOLDER",
        help="Additional folder to import networks from (--learner.encoder=mypackage.nets:resnet12).",
    )(command)


def with_configuration(command: F) -> F:
    """Add the arguments and options of a command that builds a configuration."""
    for decorate in reversed(
        (
            click.argument("learner", required=False),
            click.argument("tasks", required=False),
            click.option("--recipe", type=PATH, metavar="FILE.toml", help="File with options."),
            click.option("--seed", type=int, help="Seed of the learner's initialisation and of training [0]."),
            click.option(
                "--learner-seed", type=int, help="Seed of the initialisation, if it is to differ from --seed."
            ),
            click.option("--init-from", metavar="RUN", help="Start from the parameters of another run."),
            click.option("--iterations", type=int, help="Number of outer steps; short for --engine.iterations."),
            click.option("--optimizer", help="Name of the outer optimizer; short for --optimizer.name."),
            click.option("--backend", help="Name of the backend to compute with [cpu]."),
            click.option("--hooks", default="", metavar="A,B", help="Names of extra hook plugins."),
            import_from_option,
        )
    ):
        command = decorate(command)
    return command


def config_of(ctx: click.Context, run: str | None = None, **given: Any) -> Config:
    """Return the configuration of a recipe, arguments and flags."""
    from kshot.cli.flags import configured

    plain = {name: value for name, value in given.items() if name not in ("recipe", "import_from")}
    return configured(given["recipe"], ctx.meta[FLAGS], run=run, **plain)


@click.group(cls=Group, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="kshot", message="kshot %(version)s")
def main() -> None:
    """Learn from a handful of examples, for example: kshot train protonet omniglot."""


@main.command("list")
@as_json
def list_(json_: bool) -> None:
    """List all plugins with their states, without importing them."""
    from kshot.cli import show
    from kshot.registry import plugins

    listed = plugins()
    if json_:
        print_json([show.plugin_dict(plugin) for plugin in listed])
    else:
        click.echo(show.plugin_table(listed))


@main.command()
@click.argument("name")
@as_json
def info(name: str, json_: bool) -> None:
    """Show the options and the documentation of a plugin."""
    from kshot import registry
    from kshot.cli import show

    description = registry.info(name)
    factory = registry.load(description.plugin.name, description.plugin.group)
    if json_:
        print_json(show.info_dict(description, factory))
    else:
        click.echo(show.info_text(description, factory))


@main.command()
@as_json
@click.pass_context
def doctor(ctx: click.Context, json_: bool) -> None:
    """Import every plugin and report what is wrong; the exit code is 4 if any plugin is not ok."""
    from kshot.cli import show

    report = show.examine()
    if json_:
        print_json(report)
    else:
        click.echo(show.doctor_text(report))
    ctx.exit(0 if report["ok"] else 4)


@main.command(cls=SectionCommand, epilog=SECTIONS_HELP)
@with_configuration
@as_json
@click.pass_context
def check(ctx: click.Context, /, json_: bool, **given: Any) -> None:
    """Check whether LEARNER and TASKS fit: build everything and sample from every split, without training."""
    from kshot.registry.modules import importing
    from kshot.runs.plan import Plan, build_tasks, listed
    from kshot.runs.runner import misfits

    plan = Plan.of(config_of(ctx, **given))
    with importing(given["import_from"]):
        plan, training, tests = build_tasks(plan, new=True)
        reasons = misfits(plan, training, tests)
    if json_:
        specs = {"training": training.spec.to_dict(), "tests": [test.spec.to_dict() for test in tests]}
        print_json({"fits": not reasons, "reasons": reasons, "own": plan.own, **specs})
    elif not reasons:
        own = f" (the learner's own {listed(plan.own)})" if plan.own else ""
        tell(f"{plan.learner['name']} fits {plan.training['name']}{own}")
    else:
        lines = "".join(f"\n  - {reason}" for reason in reasons)
        say(f"kshot: {plan.learner['name']} and {plan.training['name']} don't fit:{lines}")
    ctx.exit(MisfitError.exit_code if reasons else 0)


@main.command(cls=SectionCommand, epilog=SECTIONS_HELP)
@with_configuration
@click.option("--seeds", metavar="A,B", help="Seeds to train with, one run for each.")
@click.option("--run", metavar="DIR", help="Folder to write to [runs/LEARNER-TASKS-SEED].")
@click.option("--no-run", is_flag=True, help="Write no run folder.")
@quiet_flag
@as_json
@click.pass_context
def train(
    ctx: click.Context, /, seeds: str | None, run: str | None, no_run: bool, quiet: bool, json_: bool, **given: Any
) -> None:
    """Train LEARNER on TASKS and test it."""
    if run is not None and no_run:
        raise click.UsageError("got --run and --no-run, expected at most one of them")
    if seeds is not None and given["seed"] is not None:
        raise click.UsageError("got --seed and --seeds, expected at most one of them")
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
    from kshot.registry.modules import importing
    from kshot.runs.calls import check_seeds
    from kshot.runs.comparison import over_seeds
    from kshot.runs.plan import Plan
    from kshot.runs.runner import folder_of, train_plan

    try:
        numbers = [int(seed) for seed in seeds.split(",")]
    except ValueError:
        raise click.UsageError(f"--seeds: got {seeds!r}, expected whole numbers with commas between them") from None
    configs = [config_of(ctx, run, **{**given, "seed": seed}) for seed in numbers]
    check_seeds(numbers, [] if no_run else [folder_of(config) for config in configs])
    runs: list[Run] = []
    with importing(given["import_from"]):
        plans = [Plan.of(config) for config in configs]
        for plan, config in zip(plans, configs, strict=True):
            folder = None if no_run else folder_of(config)
            runs.append(finish(ctx, partial(train_plan, plan, folder, quiet=quiet), folder, None if json_ else False))
    if json_:
        print_json([run.to_dict(episodes=False) for run in runs])
    elif len(runs) > 1:
        for line in over_seeds([run.results for run in runs], runs[0].labels):
            tell(line)


@main.command(cls=RunCommand)
@click.argument("run", type=PATH)
@import_from_option
@quiet_flag
@as_json
@click.pass_context
def resume(ctx: click.Context, run: Path, import_from: Path | None, quiet: bool, json_: bool) -> None:
    """Continue the interrupted training RUN from its newest checkpoint, and test it."""
    from kshot.runs import resume as do

    finish(ctx, lambda: do(run, quiet=quiet, import_from=import_from), run, json_)


@main.command(cls=SectionCommand, epilog=f"Takes {', '.join(f'--{name}.NAME' for name in CHANGEABLE)}.")
@click.argument("run", type=PATH)
@click.option("--output", type=PATH, metavar="FILE.json", help="File to write the scores of every episode to.")
@import_from_option
@quiet_flag
@as_json
@click.pass_context
def evaluate(
    ctx: click.Context, run: Path, output: Path | None, import_from: Path | None, quiet: bool, json_: bool
) -> None:
    """Test RUN again, with other options if wanted; the run folder is not changed."""
    from kshot._engine.run_folder import write_json
    from kshot.cli.flags import put_flags
    from kshot.runs.recipe import Table
    from kshot.runs.runner import evaluate_run

    changes: Table = {}
    put_flags(changes, ctx.meta[FLAGS], CHANGEABLE)
    outcome = evaluate_run(run, changes, quiet=quiet, import_from=import_from)
    if output is not None and outcome.rank == 0:
        write_json(output, outcome.to_dict(episodes=True))
    tell_outcome(outcome, json_)


@main.command()
@click.argument("runs", nargs=-1, required=True, type=PATH, metavar="RUN RUN...")
@click.option("--csv", type=PATH, metavar="FILE.csv", help="File to write the rows to, as comma-separated values.")
@click.option("--markdown", type=PATH, metavar="FILE.md", help="File to write the table to, in Markdown.")
@as_json
def compare(runs: tuple[Path, ...], csv: Path | None, markdown: Path | None, json_: bool) -> None:
    """Compare runs on identical episodes, as a table with paired differences from the first run.

    RUN is a run folder, or a file that kshot evaluate --output has written. Runs that differ only in their seeds
    share a row, whose interval is over seeds.
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


RUN = click.option("--run", type=PATH, required=True, metavar="RUN", help="Run folder of a finished training.")


@main.command()
@RUN
@import_from_option
@click.option(
    "--support", type=PATH, required=True, metavar="FOLDER", help="Labelled examples, one folder for each class."
)
@click.argument("files", nargs=-1, required=True, type=PATH, metavar="FILE...")
@as_json
def predict(run: Path, import_from: Path | None, support: Path, files: tuple[Path, ...], json_: bool) -> None:
    """Predict the class of each FILE from a few labelled examples; nothing is trained."""
    from kshot.cli.inference import predict as do

    outcome = do(run, support, files, import_from)
    if json_:
        print_json(outcome)
        return
    widths = [max(len(str(p[key])) for p in outcome["predictions"]) for key in ("file", "class")]
    for p in outcome["predictions"]:
        tell(f"{p['file']:<{widths[0]}}  {p['class']:<{widths[1]}}  {p['probability']:.3f}")
    for same in outcome["repeats"]:
        say(f"note: {same['file']} has the same bytes as {same['support']} of the support")
    for paths in outcome["contradictions"]:
        say(f"note: {' and '.join(paths)} have the same bytes, but are examples of different classes")


@main.command()
@RUN
@import_from_option
@click.option("--output", type=PATH, required=True, metavar="FILE.npz", help="File to write to.")
@click.argument("files", nargs=-1, required=True, type=PATH, metavar="FILE...")
def embed(run: Path, import_from: Path | None, output: Path, files: tuple[Path, ...]) -> None:
    """Write the embedding of each FILE to an npz file with the arrays 'embeddings' and 'files'."""
    from kshot.cli.inference import embed as do

    number, size = do(run, files, output, import_from)
    tell(f"{output}: {number} embeddings of {size} numbers")


@main.command()
@RUN
@import_from_option
@click.option("--threshold", type=float, help="Greatest distance at which A and B are of the same class.")
@click.argument("a", type=PATH)
@click.argument("b", type=PATH)
@as_json
def verify(run: Path, import_from: Path | None, a: Path, b: Path, threshold: float | None, json_: bool) -> None:
    """Decide whether the files A and B are of the same class, which may be one never seen in training.

    The distance between their embeddings is compared with a threshold. Unless it is given, it is chosen on pairs of
    examples of the validation classes.
    """
    from kshot.cli.inference import verify as do

    outcome = do(run, a, b, threshold, import_from)
    if json_:
        print_json(outcome)
        return
    at = outcome["threshold"]
    chosen = (
        "as given"
        if at["chosen"] == "given"
        else f"chosen on {at['genuine']} pairs of the same class and {at['imposter']} of different classes of split "
        f"{at['chosen']}, with balanced accuracy {100 * at['accuracy']:.1f} %"
    )
    verdict = "the same" if outcome["same"] else "different"
    tell(f"{verdict}: distance {outcome['distance']:.4g}, threshold {at['value']:.4g}")
    tell(f"threshold {chosen}")
    if at.get("trained_on", "train") != "train":
        say(
            f"note: the run was trained on split {at['trained_on']!r}, which may have these classes; then the "
            "threshold is too small: give one with --threshold, or train on split 'train'"
        )
