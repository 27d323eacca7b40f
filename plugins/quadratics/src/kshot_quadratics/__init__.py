"""Functions to minimise: random quadratics, and the losses of small networks on real digits."""

from kshot_quadratics.digits import DigitsMlp
from kshot_quadratics.quadratics import Quadratics

__all__ = ["DigitsMlp", "Quadratics"]
