class Tasks:
    """Tasks \x1b[2Jof no content.

    Args:
        way: classes\x1b]0;title\x07 of an episode.
    """

    spec = None

    def __init__(self, way: int = 5):
        raise RuntimeError("\x1b[2Jcleared")

    def sample(self, split, indices):
        return split, list(indices)
