"""Implicit MAML (Rajeswaran, Finn, Kakade & Levine 2019)."""

from kshot_imaml.imaml import IMAML

__all__ = ["IMAML"]
