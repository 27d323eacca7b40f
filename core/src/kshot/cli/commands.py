"""The commands: arguments in, one call, text or JSON out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from kshot.cli.console import CHANGEABLE, EPILOG, FLAGS, INTERRUPTED, Group, SectionCommand, print_json, say, tell
from kshot.errors import MisfitError
from kshot.runs.launch import processes

if TYPE_CHECKING:
    from kshot.runs.recipe import Config
    from kshot.runs.runner import Outcome

F = TypeVar("F", bound=Callable[..., Any])
PATH = click.Path(path_type=Path)

SECTIONS_HELP = """\b
Options of plugins and of the engine are the names they have in code
(kshot info NAME shows a plugin's):
  --learner.NAME=VALUE     of the learner; --learner.inner=reptile
                           --learner.inner.inner_lr=0.1 for a learner in it
  --tasks.NAME=VALUE       of the tasks
  --training.NAME=VALUE    of the tasks, where they differ while training
  --optimizer.NAME=VALUE   name, lr, schedule, every, factor, warmup, clip,
                           momentum, weight_decay
  --engine.NAME=VALUE      meta_batch, chunk, iterations, split,
                           validate_every, validation_episodes,
                           validation_split, patience, checkpoint_every, keep
  --backend.NAME=VALUE     of the backend, e.g. precision
  --evaluate.NAME=VALUE    episodes, split, batch
  --hook.NAME.OPTION=VALUE of an extra hook
Values are read as TOML: 5, 1e-3, true, [1, 2], none, text. A recipe is a
TOML file with the same names: learner = "protonet", [tasks] way = 5, ...
and a table [[test]] of task options for each test (test.learner: options of
the learner that differ in it); flags win over it. In its run and init_from,
{seed} stands for the seed."""


def as_json(command: F) -> F:
    return click.option("--json", "json_", is_flag=True, help="JSON on standard output.")(command)


def quiet_flag(command: F) -> F:
    return click.option("--quiet", is_flag=True, help="No progress, only the result.")(command)


def configured(command: F) -> F:
    """Arguments and options of the commands that build a configuration."""
    for decorate in reversed(
        (
            click.argument("learner", required=False),
            click.argument("tasks", required=False),
            click.option("--recipe", type=PATH, metavar="FILE.toml", help="Options from a file."),
            click.option("--seed", type=int, help="Of the learner's initialisation and of training [0]."),
            click.option("--init-from", metavar="RUN", help="Begin from the parameters of another run."),
            click.option("--iterations", type=int, help="Short for --engine.iterations."),
            click.option("--optimizer", help="Short for --optimizer.name."),
            click.option("--backend", help="Where to compute [cpu]."),
            click.option("--hooks", default="", metavar="A,B", help="Extra hook plugins."),
        )
    ):
        command = decorate(command)
    return command


def config_of(ctx: click.Context, run: str | None = None, **given: Any) -> Config:
    from kshot.runs.recipe import configure

    names = {section: given[section] for section in ("learner", "tasks", "optimizer", "backend")}
    plain = {name: given[name] for name in ("hooks", "seed", "iterations", "init_from")}
    return configure(given["recipe"], ctx.meta[FLAGS], names=names, run=run, **plain)


@click.group(cls=Group, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="kshot", message="kshot %(version)s")
def main() -> None:
    """Learning from a handful of examples: kshot train protonet omniglot."""


@main.command("list")
@as_json
def list_(json_: bool) -> None:
    """All plugins, each with its state; imports none."""
    from kshot.cli import show
    from kshot.registry import plugins

    found = plugins()
    if json_:
        print_json([show.plugin_dict(plugin) for plugin in found])
    else:
        click.echo(show.plugin_table(found))


@main.command()
@click.argument("name")
@as_json
def info(name: str, json_: bool) -> None:
    """A plugin's options and documentation."""
    from kshot import registry
    from kshot.cli import show

    found = registry.info(name)
    factory = registry.load(found.plugin.name, found.plugin.group)
    if json_:
        print_json(show.info_dict(found, factory))
    else:
        click.echo(show.info_text(found, factory))


@main.command()
@as_json
@click.pass_context
def doctor(ctx: click.Context, json_: bool) -> None:
    """Import every plugin and say what is wrong; exits with 4 where any is not ok."""
    from kshot.cli import show

    report = show.examine()
    if json_:
        print_json(report)
    else:
        click.echo(show.doctor_text(report))
    ctx.exit(0 if report["ok"] else 4)


@main.command(cls=SectionCommand, epilog=SECTIONS_HELP)
@configured
@as_json
@click.pass_context
def check(ctx: click.Context, /, json_: bool, **given: Any) -> None:
    """Whether LEARNER and TASKS fit: builds all, samples all, computes nothing."""
    from kshot.runs.plan import Plan, build_tasks, listed
    from kshot.runs.runner import misfits

    plan = Plan.of(config_of(ctx, **given))
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
@configured
@click.option("--run", metavar="DIR", help="Where to write [runs/LEARNER-TASKS-SEED].")
@click.option("--no-run", is_flag=True, help="Write nothing.")
@quiet_flag
@as_json
@click.pass_context
def train(ctx: click.Context, /, run: str | None, no_run: bool, quiet: bool, json_: bool, **given: Any) -> None:
    """Train LEARNER on TASKS and test it."""
    if run is not None and no_run:
        raise click.UsageError("--run and --no-run contradict each other")
    from kshot.runs.plan import Plan
    from kshot.runs.runner import train as do

    config = config_of(ctx, run, **given)
    default = f"runs/{config.learner['name']}-{config.tasks['name']}-{config.seed}"
    folder = None if no_run else Path(config.run or default)
    plan = Plan.of(config)
    finish(ctx, lambda: do(plan, folder, quiet=quiet), folder, json_)


@main.command()
@click.argument("run", type=PATH)
@quiet_flag
@as_json
@click.pass_context
def resume(ctx: click.Context, run: Path, quiet: bool, json_: bool) -> None:
    """Go on with a training that was cut off, and test it."""
    from kshot.runs.runner import resume as do

    finish(ctx, lambda: do(run, quiet=quiet), run, json_)


@main.command(cls=SectionCommand, epilog=f"Takes {', '.join(f'--{name}.NAME' for name in CHANGEABLE)}.")
@click.argument("run", type=PATH)
@click.option("--output", type=PATH, metavar="FILE.json", help="Write every episode's scores.")
@quiet_flag
@as_json
@click.pass_context
def evaluate(ctx: click.Context, run: Path, output: Path | None, quiet: bool, json_: bool) -> None:
    """Test a run again, with other tasks or learner options if wanted; RUN is left as it is."""
    from kshot._engine.run_folder import write_json
    from kshot.runs.runner import changed_plan
    from kshot.runs.runner import evaluate as do

    outcome = do(run, changed_plan(run, ctx.meta[FLAGS]), quiet=quiet)
    if output is not None and outcome.rank == 0:
        write_json(output, outcome.to_dict(episodes=True))
    tell_outcome(outcome, json_)


RUN = click.option("--run", type=PATH, required=True, metavar="RUN", help="The folder of a finished training.")


@main.command()
@RUN
@click.option(
    "--support", type=PATH, required=True, metavar="FOLDER", help="The known examples: a folder for each class."
)
@click.argument("files", nargs=-1, required=True, type=PATH, metavar="FILE...")
@as_json
def predict(run: Path, support: Path, files: tuple[Path, ...], json_: bool) -> None:
    """The class of each FILE, by a few known examples; nothing is trained."""
    from kshot.cli.inference import predict as do

    made = do(run, support, files)
    if json_:
        print_json(made)
        return
    widths = [max(len(str(p[key])) for p in made["predictions"]) for key in ("file", "class")]
    for p in made["predictions"]:
        tell(f"{p['file']:<{widths[0]}}  {p['class']:<{widths[1]}}  {p['probability']:.3f}")
    for same in made["repeats"]:
        say(f"note: {same['file']} has the same bytes as {same['support']} of the support")
    for paths in made["contradictions"]:
        say(f"note: {' and '.join(paths)} have the same bytes, but are of several classes")


@main.command()
@RUN
@click.option("--output", type=PATH, required=True, metavar="FILE.npz", help="Where to write.")
@click.argument("files", nargs=-1, required=True, type=PATH, metavar="FILE...")
def embed(run: Path, output: Path, files: tuple[Path, ...]) -> None:
    """Write the embedding of each FILE: arrays 'embeddings' and 'files'."""
    from kshot.cli.inference import embed as do

    number, size = do(run, files, output)
    tell(f"{output}: {number} embeddings of {size} numbers")


@main.command()
@RUN
@click.option("--threshold", type=float, help="The greatest distance that counts as the same.")
@click.argument("a", type=PATH)
@click.argument("b", type=PATH)
@as_json
def verify(run: Path, a: Path, b: Path, threshold: float | None, json_: bool) -> None:
    """Whether A and B are of one class, of which nothing need be known.

    The distance of their embeddings is held against a threshold that is chosen on pairs of the validation classes,
    unless one is given.
    """
    from kshot.cli.inference import verify as do

    made = do(run, a, b, threshold)
    if json_:
        print_json(made)
        return
    at = made["threshold"]
    chosen = (
        "as given"
        if at["chosen"] == "given"
        else f"chosen on {at['genuine']} pairs of one and {at['imposter']} of two classes of split {at['chosen']}, "
        f"{100 * at['accuracy']:.1f} % of them right"
    )
    tell(f"{'the same' if made['same'] else 'different'}: distance {made['distance']:.4g}, threshold {at['value']:.4g}")
    tell(f"threshold {chosen}")
    if at.get("trained_on", "train") != "train":
        say(
            f"note: the run was trained on split {at['trained_on']!r}, which may have these classes: then the "
            "threshold is too small; give one with --threshold, or train on 'train'"
        )


def finish(ctx: click.Context, work: Callable[[], Outcome], run: Path | None, json_: bool) -> None:
    """Do the training and tell its outcome; Ctrl-C says how to go on."""
    try:
        outcome = work()
    except KeyboardInterrupt:
        begun = run is not None and (run / "config.json").is_file()
        how = "torchrun ... -m kshot" if processes() > 1 else "kshot"
        say(f"\nkshot: interrupted; go on with: {how} resume {run}" if begun else "\nkshot: interrupted")
        ctx.exit(INTERRUPTED)
    tell_outcome(outcome, json_)
    if outcome.run is not None and not json_:
        tell(f"run: {outcome.run}")


def tell_outcome(outcome: Outcome, json_: bool) -> None:
    if json_:
        print_json(outcome.to_dict(episodes=False))
        return
    for label, result in zip(outcome.labels, outcome.results, strict=True):
        tell(f"{label}: {result}" if label else str(result))
    for compared in outcome.differences:
        tell(str(compared))
    spent = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in outcome.wall.items())
    tell(f"{outcome.iterations} iterations; {spent}")
