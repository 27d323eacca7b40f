"""Compare the predictions of a classifier with the true classes of a folder of files.

Letters: n examples, N classes of the classifier, R classes of the folder.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from attrs import evolve, frozen
from numpy.typing import NDArray

from kshot import registry
from kshot.data.folders import accepted_by, scan
from kshot.errors import DataError, OptionError, PluginError
from kshot.runs.classifier import Answer, Classifier
from kshot.runs.fitting import prepare_all

DRAWER = "plots"
"""The hook plugin that draws. Its factory has the attribute ``mistakes``, a function from a ``Judged`` and a path that
writes a PNG file."""


@frozen(eq=False)
class Judged:
    """Store what a classifier predicts for examples of known classes.

    Attributes:
        answer: the predictions for n examples.
        files: the file of each example.
        true: the true class of each example. It may be none of the classes of the classifier.

    Example:
        >>> p = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
        >>> answer = Answer(("cat", "dog"), p, p > 0.5, 0.9)
        >>> judged = Judged(answer, tuple(Path(f"{i}.png") for i in range(3)), ("cat", "dog", "newt"))
        >>> judged.rows, judged.counts.tolist(), judged.mistakes
        (('cat', 'dog', 'newt'), [[1, 0], [1, 0], [0, 1]], [1, 2])
    """

    answer: Answer
    files: tuple[Path, ...]
    true: tuple[str, ...]

    @property
    def rows(self) -> tuple[str, ...]:
        """The R true classes: first those of the classifier, in its order, then others."""
        known = [name for name in self.answer.names if name in self.true]
        return (*known, *sorted(set(self.true) - set(known)))

    @property
    def counts(self) -> NDArray[np.int64]:
        """The confusion table [R, N]: how many examples of each true class are nearest to each class."""
        table = np.zeros((len(self.rows), len(self.answer.names)), np.int64)
        rows = [self.rows.index(name) for name in self.true]
        np.add.at(table, (rows, self.answer.probabilities.argmax(1)), 1)
        return table

    @property
    def known(self) -> NDArray[np.bool_]:
        """Whether the true class of each example is one of the classifier [n]."""
        return np.array([name in self.answer.names for name in self.true], bool)

    @property
    def correct(self) -> int:
        """The number of examples whose class is predicted correctly."""
        return sum(label == name for label, name in zip(self.answer.labels, self.true, strict=True))

    @property
    def mistakes(self) -> list[int]:
        """The wrong predictions, the most certain first.

        An example of none of the classes is predicted correctly if no class is plausible.
        """
        wrong = np.array([label != name for label, name in zip(self.answer.labels, self.true, strict=True)], bool)
        wrong &= self.known | self.answer.known
        order = np.argsort(-self.answer.probabilities.max(1), kind="stable")
        return [int(i) for i in order if wrong[i]]


def judge(classifier: Classifier, folder: str | Path, *, coverage: float = 0.9, skip: bool = False) -> Judged:
    """Predict the files of a folder that has a folder for each class.

    Args:
        classifier: a classifier of files.
        folder: the folder. Names of folders that are no class of the classifier are examples of none of its classes.
        coverage: see ``Classifier.predict``.
        skip: whether to leave out files that can't be read, with a warning.

    Raises:
        DataError: the classifier is not one of files, no folder in it is named as a class, or a file can't be read.
    """
    if classifier.preparation is None:
        raise DataError("predict: got a classifier of numbers, expected one that was made of files")
    found = scan(folder, accepted_by(classifier.preparation), least=1, what="examples")
    if not set(found.classes) & set(classifier.names):
        raise DataError(
            f"{folder}: got the folders {', '.join(found.classes)}, expected at least one that is named as a class of "
            f"the classifier: {', '.join(classifier.names)}"
        )
    x, read = prepare_all(classifier.preparation, found.paths, skip=skip)
    true = [name for name, files in found.classes.items() for _ in files]
    answer = evolve(classifier, preparation=None).predict(x, coverage=coverage)
    return Judged(answer, tuple(Path(folder) / found.files[i] for i in read), tuple(true[i] for i in read))


def check_picture(path: Path) -> None:
    """Raise an error if a picture of the mistakes can't be written to a path, before anything is computed.

    Raises:
        OptionError: the name does not end in ``.png``, or its folder does not exist.
        PluginError: the plugin that draws is not installed.
    """
    if path.suffix.lower() != ".png":
        raise OptionError(f"--mistakes: got {path}, expected a name that ends in .png")
    if not path.parent.is_dir():
        raise OptionError(f"--mistakes: got {path}, whose folder does not exist; create it or choose another")
    _drawer()


def draw(judged: Judged, path: Path) -> None:
    """Write the confusion table and the worst mistakes as a PNG file.

    Raises:
        PluginError: the plugin that draws is not installed.
    """
    _drawer()(judged, path)


def _drawer() -> Callable[[Judged, Path], None]:
    """Return the function of the plugin that draws."""
    function: Callable[[Judged, Path], None] | None = getattr(registry.load(DRAWER, "hooks"), "mistakes", None)
    if function is None:
        raise PluginError(f"predict: got a plugin {DRAWER!r} that draws no mistakes; pip install --upgrade kshot-plots")
    return function
