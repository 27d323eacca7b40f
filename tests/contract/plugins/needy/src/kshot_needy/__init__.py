"""Import a module that is not installed."""

import a_module_that_is_nowhere  # noqa: F401


class Tasks:
    """Represent tasks without any content."""

    spec = None

    def sample(self, split, indices):
        return split, list(indices)
