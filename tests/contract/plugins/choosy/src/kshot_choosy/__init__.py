"""Provide a backend whose device number does not exist."""

from kshot.errors import Unavailable


class Backend:
    """Represent a backend for one of several devices."""

    def __init__(self, index: int = 0):
        raise Unavailable(f"no device number {index}")
