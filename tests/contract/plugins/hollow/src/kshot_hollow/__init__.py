"""Provide a function that is registered as tasks but returns a number."""


def tasks():
    """Return a number where tasks are expected."""
    return 7
