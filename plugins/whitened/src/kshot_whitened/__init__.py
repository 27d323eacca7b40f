"""Inputs as their whitened principal components, as a view of any labelled tasks."""

from kshot_whitened.view import Whitened

__all__ = ["Whitened"]
