"""Define the commands that use a trained learner or a classifier on files: fit, predict, export, embed, verify."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from kshot.cli.commands import main
from kshot.cli.console import FLAGS, RunCommand, SectionCommand, print_json, say, tell
from kshot.cli.options import FIT_HELP, PATH, RUN, as_json, import_from_option


@main.command(cls=SectionCommand, epilog=FIT_HELP)
@click.argument("source", type=PATH, metavar="FOLDER|FILE.csv")
@click.option("-o", "--output", type=PATH, metavar="FILE.kshot", help="File to write.")
@click.option("--encoder", help="Encoder plugin, or none for raw inputs.  [default: one that is installed]")
@click.option("--learner", help="Learner that adapts without training.  [default: the nearest mean of a class]")
@click.option("--tasks", help="Plugin that reads the files.  [default: by the kind of files]")
@click.option("--add", multiple=True, metavar="NAME=FOLDER", help="Add the files in FOLDER to the class NAME.")
@click.option("--remove", multiple=True, metavar="NAME", help="Remove the class NAME.")
@click.option("--skip", is_flag=True, help="Leave out files that can't be read, instead of an error.")
@as_json
@click.pass_context
def fit(
    ctx: click.Context, /, source: Path, output: Path | None, add: tuple[str, ...], remove: tuple[str, ...],
    skip: bool, json_: bool, **named: str | None,
) -> None:  # fmt: skip
    """Make a classifier of the files in FOLDER, which has a folder for each class, without training.

    FILE.csv has the text or the path of an example, and its label, in each row (columns text or path, and label).
    FOLDER may also be a classifier that was made before, to which --add and --remove apply. The estimate of the
    accuracy is from predictions of each file by all others.
    """
    from kshot.cli.fitting import described
    from kshot.cli.fitting import fit as do
    from kshot.cli.flags import put_flags

    tables: dict[str, Any] = {name: {"name": value} for name, value in named.items() if value is not None}
    put_flags(tables, ctx.meta[FLAGS], ("encoder", "learner", "tasks"))
    classifier, path = do(source, output, tables, add, remove, skip=skip)
    outcome = {"file": str(path), **described(classifier)}
    if json_:
        print_json(outcome)
        return
    tell(f"{path}: {', '.join(f'{name} ({count})' for name, count in outcome['classes'].items())}")
    if classifier.estimate is None:
        tell("accuracy: no estimate, because every class has only one example; two or more give one")
    else:
        tell(f"accuracy: {classifier.estimate}")
    for wrong in outcome["mistakes"][:10]:
        tell(f"  {wrong['file']}: looks like {wrong['predicted']}")


@main.command(cls=RunCommand)
@click.option("--run", type=PATH, metavar="RUN", help="Run folder of a finished training; it has the learner to use.")
@import_from_option
@click.option("--support", type=PATH, metavar="FOLDER", help="Folder of labelled examples, one folder per class.")
@click.option(
    "--coverage", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.9, show_default=True,
    help="Of a classifier: how often its plausible classes include the right one.",
)  # fmt: skip
@click.option("--text", "texts", multiple=True, metavar="TEXT", help="A text to predict; - reads standard input.")
@click.option(
    "--mistakes", type=PATH, metavar="FILE.png",
    help="Of a classifier and a folder of class folders: draw the confusion table and the worst mistakes.",
)  # fmt: skip
@click.argument("files", nargs=-1, required=True, type=PATH, metavar="[CLASSIFIER] FILE...")
@as_json
def predict(
    run: Path | None, import_from: Path | None, support: Path | None, coverage: float, texts: tuple[str, ...],
    mistakes: Path | None,
    files: tuple[Path, ...], json_: bool,
) -> None:  # fmt: skip
    """Predict the class of each FILE: with a CLASSIFIER that kshot fit made, or from a few labelled examples.

    A CLASSIFIER predicts all files of a folder, too. If the folder has a folder for each class, the predictions are
    compared with these classes, and a confusion table is printed.

    With --run and --support, the learner of a run adapts to the labelled examples; its parameters are not changed. The
    classes may be new ones.
    """
    if run is None and support is None:
        predict_with_classifier(files, texts, coverage, mistakes, json_)
        return
    if texts:
        raise click.UsageError("got --text and a run, expected a classifier that kshot fit made; write a file of it")
    if mistakes is not None:
        raise click.UsageError("got --mistakes with a run, expected a classifier that kshot fit made")
    if run is None or support is None:
        raise click.UsageError("got one of --run and --support, expected both, or a classifier that kshot fit made")
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


def predict_with_classifier(
    files: tuple[Path, ...], texts: tuple[str, ...], coverage: float, mistakes: Path | None, json_: bool
) -> None:
    """Predict files and texts by a classifier, the first of the paths, and print the outcome."""
    from kshot.cli.fitting import predict as do
    from kshot.cli.outcomes import confusion_lines
    from kshot.data.texts import decoded

    if files[0].suffix != ".kshot" or len(files) + len(texts) < 2:
        raise click.UsageError(
            f"got {files[0]}, expected a classifier (NAME.kshot, see kshot fit) and files, or --run and --support"
        )
    given = [text if text != "-" else decoded(sys.stdin.buffer.read(), "standard input") for text in texts]
    outcome = do(files[0], files[1:], coverage, given, mistakes)
    if json_:
        print_json(outcome)
        return
    predictions = outcome["predictions"]
    if "confusion" in outcome:
        for line in confusion_lines(outcome):
            tell(line)
        if mistakes is not None:
            tell(f"{mistakes}: the confusion table and the worst mistakes")
        return
    widths = [max(len(str(p[key])) for p in predictions) for key in ("file", "nearest")]
    for p in predictions:
        others = [name for name in p["plausible"] if name != p["nearest"]]
        more = f"; perhaps {', '.join(others)}" if others else ""
        more = more if p["class"] else f"; perhaps none of these: no class is plausible at coverage {coverage:g}"
        tell(f"{p['file']:<{widths[0]}}  {p['nearest']:<{widths[1]}}  {p['probability']:.3f}{more}")


@main.command(cls=RunCommand)
@click.argument("source", type=PATH, metavar="CLASSIFIER")
@click.option("-o", "--output", type=PATH, required=True, metavar="FILE.onnx", help="File to write.")
@as_json
def export(source: Path, output: Path, json_: bool) -> None:
    """Write a CLASSIFIER that kshot fit made as an ONNX file: its encoder and its head in one graph.

    The graph computes the calibrated probabilities of prepared inputs. The metadata of the file have the names of the
    classes and how inputs are prepared. Needs the packages of kshot[onnx].
    """
    from kshot.cli.fitting import export as do

    outcome = do(source, output)
    if json_:
        print_json(outcome)
        return
    n, way = ", ".join(map(str, outcome["inputs"])), len(outcome["classes"])
    tell(f"{output}: from inputs [n, {n}] to probabilities [n, {way}], {outcome['bytes'] / 1e6:.1f} MB")
    tell(f"greatest difference from the classifier, by onnxruntime: {outcome['difference']:.1e}")


@main.command(cls=RunCommand)
@RUN
@import_from_option
@click.option("--output", type=PATH, required=True, metavar="FILE.npz", help="File to write.")
@click.argument("files", nargs=-1, required=True, type=PATH, metavar="FILE...")
def embed(run: Path, import_from: Path | None, output: Path, files: tuple[Path, ...]) -> None:
    """Write the embeddings of files, their vectors, to an npz file.

    The npz file has an array 'embeddings', with one row for each FILE, and an array 'files' with their names.
    """
    from kshot.cli.inference import embed as do

    number, size = do(run, files, output, import_from)
    tell(f"{output}: {number} embeddings of {size} numbers")


@main.command(cls=RunCommand)
@RUN
@import_from_option
@click.option("--threshold", type=float, help="Greatest distance that counts as the same class.")
@click.argument("a", type=PATH)
@click.argument("b", type=PATH)
@as_json
def verify(run: Path, import_from: Path | None, a: Path, b: Path, threshold: float | None, json_: bool) -> None:
    """Decide whether the files A and B are of the same class.

    The class may be one that was never seen in training. The distance between the embeddings of A and B is compared
    with a threshold. Without --threshold, the threshold is chosen on pairs of examples of the validation classes.
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
