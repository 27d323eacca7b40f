"""A view that describes classes by vectors from a table, which also makes zero-shot tasks."""

from kshot_semantics.view import Semantics

__all__ = ["Semantics"]
