"""Raise an exception in a function, so that the traceback has a frame to show."""


def prepare():
    raise RuntimeError("the tables could not be prepared")


prepare()
