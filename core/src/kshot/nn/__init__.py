"""Encoders and the policy of normalisation; memories, tried before they are used."""

from kshot.nn.encoders import Encoder, EncoderChoice, conv4, encoder, mlp
from kshot.nn.memories import memory
from kshot.nn.normalisation import Normalisation

__all__ = ["Encoder", "EncoderChoice", "Normalisation", "conv4", "encoder", "memory", "mlp"]
