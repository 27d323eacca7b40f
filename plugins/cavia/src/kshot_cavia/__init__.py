"""CAVIA (Zintgraf, Shiarlis, Kurin, Hofmann & Whiteson 2018): adapt a few context parameters instead of a network."""

from kshot_cavia.cavia import CAVIA

__all__ = ["CAVIA"]
