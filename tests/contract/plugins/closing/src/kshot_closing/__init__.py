import sys

sys.stdout.close()


class Tasks:
    """Tasks of no content."""

    spec = None

    def sample(self, split, indices):
        return split, list(indices)
