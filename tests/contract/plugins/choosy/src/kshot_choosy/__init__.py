from kshot.errors import Unavailable


class Backend:
    """A backend for one device of several."""

    def __init__(self, index: int = 0):
        raise Unavailable(f"no device number {index}")
