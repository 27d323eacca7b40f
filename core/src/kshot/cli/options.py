"""Define the options that several commands share, with their help texts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from kshot.cli.console import CHANGEABLE

F = TypeVar("F", bound=Callable[..., Any])
PATH = click.Path(path_type=Path)
"""The type of arguments that are paths."""

SECTIONS_HELP = """\b
Options of plugins and of the engine have the names that they have in Python.
kshot info NAME lists the options of a plugin.

\b
  --learner.NAME=VALUE      An option of the learner. Some learners contain
                            another learner, which has options too:
                              --learner.inner=reptile
                              --learner.inner.inner_lr=0.1
  --tasks.NAME=VALUE        An option of the tasks.
  --training.NAME=VALUE     An option of the tasks while training, if it
                            differs from the one in the test.
  --backend.NAME=VALUE      An option of the backend, such as precision.
  --hook.NAME.OPTION=VALUE  An option of the hook NAME from --hooks.

\b
  --optimizer.NAME=VALUE    The outer optimizer. By default, the learner
                            chooses name to clip.
      name                  adam, adamw, sgd, rmsprop or adagrad
      lr                    learning rate, the highest of the schedule
      schedule              constant, step, linear or cosine; linear and
                            cosine fall to 0 at the last iteration
      every, factor         schedule step: after so many iterations, multiply
                            the rate by factor
      warmup                iterations in which the rate rises from 0
      clip                  greatest norm of the gradient; none: no limit
      momentum              of sgd and rmsprop [default: 0]
      weight_decay          penalty on large parameters [default: 0]

\b
  --engine.NAME=VALUE       The training loop.
      meta_batch            tasks per iteration [default: the learner's]
      iterations            meta-batches to train on [default: the learner's]
      chunk                 tasks computed at once; fewer need less memory
                            [default: all of a meta-batch]
      split                 split to train on [default: train]
      validate_every        iterations between validations; the best
                            parameters are kept [default: none, no validation]
      stop_loss             stop after 50 iterations in a row with a loss below
                            this number and no wrong prediction
      validation_episodes   episodes per validation [default: 200]
      validation_split      split to validate on [default: val]
      patience              stop after so many validations without a better
                            score [default: none, never]
      checkpoint_every      iterations between checkpoints [default: 500]
      checkpoint_seconds    time after which one is written anyway [default: 60]
      keep                  newest checkpoints to keep [default: 2]

\b
  --evaluate.NAME=VALUE     The test.
      episodes              number of test episodes [default: 600]
      split                 split to test on [default: test]
      batch                 episodes computed at once [default: chosen by size]
      disjoint              whether no example is in two episodes; then they
                            may be fewer [default: false]
      baselines             whether simple methods are tested too, for images
                            and sounds of a folder [default: true]
      attack                fgsm or pgd: attack the inputs [default: none]
      attack.epsilon        greatest change of a number of an input
      attack.on             query, support, both, or each for a test of each
                            and one without an attack [default: query]
      attack.steps, attack.step_size, attack.random_start
                            of pgd [default: 10, 2.5 epsilon / steps, true]

\b
Values are written as in TOML: 5, 1e-3, true, [1, 2]. In addition, none and
plain text without quotes are understood.

\b
A recipe is a TOML file with the same names, for example:
  learner = "protonet"
  [tasks]
  name = "omniglot"
  shot = 5
Options on the command line override the recipe. A recipe may have several
tests: each has a table [[test]] with the options of its tasks, and a table
[test.learner] with the options of the learner that differ in this test.
In the recipe's run and init_from, {seed} is replaced by the seed."""

EVALUATE_HELP = f"""\b
These options can differ from those of the training:
  {", ".join(f"--{name}.NAME=VALUE" for name in CHANGEABLE[:2])},
  {", ".join(f"--{name}.NAME=VALUE" for name in CHANGEABLE[2:])}.
kshot train --help explains them."""

RESUME_HELP = """\b
The backend can differ from that of the training, such as --backend.name=cpu
on a machine without its device. kshot train --help explains its options."""

FIT_HELP = """\b
Options of plugins have the names that they have in Python:
  --encoder.NAME=VALUE, --learner.NAME=VALUE, --tasks.NAME=VALUE.
kshot info NAME lists the options of a plugin."""

RUN = click.option(
    "--run",
    type=PATH,
    required=True,
    metavar="RUN",
    help="Run folder of a finished training; it has the learner to use.",
)
"""The option ``--run`` of the commands that use a trained learner."""


def as_json(command: F) -> F:
    """Add the flag ``--json`` to a command."""
    return click.option("--json", "json_", is_flag=True, help="Print the result as JSON, for programs.")(command)


def quiet_flag(command: F) -> F:
    """Add the flag ``--quiet`` to a command."""
    return click.option("--quiet", is_flag=True, help="Print only the result, without the progress.")(command)


def import_from_option(command: F) -> F:
    """Add the option ``--import-from`` to a command."""
    return click.option(
        "--import-from",
        type=PATH,
        metavar="FOLDER",
        help="Also import networks from Python files in FOLDER, as for --learner.encoder=mypackage.nets:resnet12.",
    )(command)


def with_configuration(command: F) -> F:
    """Add the arguments and options of a command that builds a configuration."""
    for decorate in reversed(
        (
            click.argument("learner", required=False),
            click.argument("tasks", required=False),
            click.option(
                "--recipe", type=PATH, metavar="FILE.toml", help="Read options from this file; see the example below."
            ),
            click.option("--seed", type=int, help="Seed of the initial parameters and of training.  [default: 0]"),
            click.option("--learner-seed", type=int, help="Seed of the initial parameters, if it differs from --seed."),
            click.option("--init-from", metavar="RUN", help="Start from the trained parameters of the run folder RUN."),
            click.option("--iterations", type=int, help="Meta-batches to train on; short for --engine.iterations."),
            click.option("--optimizer", help="Outer optimizer, such as adam; short for --optimizer.name."),
            click.option("--backend", help="Device to compute on.  [default: one with a plugin, else cpu]"),
            click.option("--hooks", default="", metavar="A,B", help="Also run these hook plugins, such as plots."),
            import_from_option,
        )
    ):
        command = decorate(command)
    return command
