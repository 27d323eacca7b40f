"""Every error that kshot raises on purpose. A message says who, what was given, what was expected, and what to do next.

``exit_code`` is the exit code of the command line: 1 a run failed, 2 wrong usage (click's own code), 3 learner and
tasks do not fit, 4 a plugin is missing or unusable, 5 bad data, 6 a run folder or checkpoint is unusable.
"""


class KshotError(Exception):
    """Base class of all errors below."""

    exit_code = 1


class OptionError(KshotError, TypeError):
    """An option of a plugin or of the engine is unknown, missing or has the wrong type or value."""

    exit_code = 2


class MisfitError(KshotError):
    """A learner needs what the tasks or the backend do not provide. Lists every mismatch at once."""

    exit_code = 3


class PluginError(KshotError):
    """A plugin is unknown, unavailable, incompatible, broken, duplicate or disabled."""

    exit_code = 4


class UnknownPluginError(PluginError, LookupError):
    """No plugin has this name. The message suggests similar names, and the install command if one is known."""


class Unavailable(PluginError):
    """A plugin raises this while it is imported or built, when something that it needs is missing.

    The message is the reason that ``kshot list`` and ``kshot doctor`` show: ``Unavailable("no CUDA device")``.
    """


class DataError(KshotError, ValueError):
    """Data are malformed: shapes, types, ranges, labels, files. Raised before any compute."""

    exit_code = 5


class RunError(KshotError):
    """A run folder or checkpoint can't be used: not empty, truncated, corrupt, foreign or newer than this core."""

    exit_code = 6


class TrainingError(KshotError):
    """Training can't continue: a loss is not finite, or a learner returned what its protocol does not allow."""


class HookError(KshotError):
    """A hook plugin raised an exception, which is chained. Names the plugin and the hook."""
