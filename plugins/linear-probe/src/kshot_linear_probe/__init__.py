"""A linear probe (Chen, Liu, Kira, Wang & Huang 2019)."""

from kshot_linear_probe.linear_probe import LinearProbe

__all__ = ["LinearProbe"]
