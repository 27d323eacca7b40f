"""Functions to minimise: the losses of small networks on real digits and on the images of other tasks."""

from kshot_digit_nets.digits import DigitNets
from kshot_digit_nets.nets import Net
from kshot_digit_nets.pooled_nets import PooledNets

__all__ = ["DigitNets", "Net", "PooledNets"]
