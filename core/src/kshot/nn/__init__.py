"""Encoders, networks that adapt, memories that are tested before use, and the policy of batch normalisation."""

from kshot.nn.encoders import Encoder, EncoderChoice, conv4, encoder, infer_output_shape, linear, mlp
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
    "infer_output_shape",
    "linear",
    "memory",
    "mlp",
    "network",
]
