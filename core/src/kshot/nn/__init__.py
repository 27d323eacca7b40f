"""Encoders, nets that adapt, memories tried before they are used, and the policy of normalisation."""

from kshot.nn.encoders import Encoder, EncoderChoice, conv4, encoder, linear, mlp
from kshot.nn.memories import memory
from kshot.nn.networks import Network, NetworkChoice, network
from kshot.nn.normalisation import Normalisation, evaluating

__all__ = [
    "Encoder",
    "EncoderChoice",
    "Network",
    "NetworkChoice",
    "Normalisation",
    "conv4",
    "encoder",
    "evaluating",
    "linear",
    "memory",
    "mlp",
    "network",
]
