"""The closed sets of names, apart from the values that use them, so that reading a manifest imports nothing more."""

KIND_NAMES: tuple[str, ...] = ("classification", "regression", "sequence", "control", "objective")
"""Kinds of tasks; ``kshot.kinds`` has their scorers."""

PROVISIONS: tuple[str, ...] = ("unlabelled", "semantics", "external", "identities", "stream")
"""What tasks may provide beyond examples, see ``kshot.TaskSpec``."""
