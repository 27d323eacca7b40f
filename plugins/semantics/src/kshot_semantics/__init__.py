"""Class vectors from a table, and zero-shot tasks of them, as a view of any labelled tasks."""

from kshot_semantics.view import Semantics

__all__ = ["Semantics"]
