"""Every error kshot raises on purpose. Each says who, what came, what was expected, and what to do next.

``exit_code`` is what the command line exits with: 1 a run failed, 2 wrong usage (click's own),
3 learner and tasks do not fit, 4 a plugin is missing or unusable, 5 bad data, 6 a run folder or checkpoint is unusable.
"""


class KshotError(Exception):
    """Base of all errors below."""

    exit_code = 1


class OptionError(KshotError, TypeError):
    """An option of a plugin or of the engine is unknown, missing or has the wrong type or value."""

    exit_code = 2


class MisfitError(KshotError):
    """What a learner needs is not what the tasks or the backend provide. Lists every mismatch at once."""

    exit_code = 3


class PluginError(KshotError):
    """A plugin is unknown, unavailable, incompatible, broken, duplicate or disabled."""

    exit_code = 4


class UnknownPluginError(PluginError, LookupError):
    """No plugin has this name; the message suggests near names and the install line where one is known."""


class Unavailable(PluginError):
    """Raised *by a plugin* while it is imported or built, when something it needs is not here.

    The message is the reason a user reads in ``kshot list`` and ``kshot doctor``: ``Unavailable("no CUDA device")``.
    """


class DataError(KshotError, ValueError):
    """Data are malformed: shapes, types, ranges, labels, files. Raised before any compute."""

    exit_code = 5


class RunError(KshotError):
    """A run folder or checkpoint can't be used: not empty, truncated, corrupt, foreign or newer than this core."""

    exit_code = 6


class TrainingError(KshotError):
    """Training can't go on: a loss is not finite, a learner returned something else than its protocol says."""


class HookError(KshotError):
    """A hook plugin raised. Names the plugin and the hook; the cause is chained."""
