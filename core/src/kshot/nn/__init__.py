"""Encoders and the policy of normalisation."""

from kshot.nn.encoders import Encoder, EncoderChoice, conv4, encoder, mlp
from kshot.nn.normalisation import Normalisation

__all__ = ["Encoder", "EncoderChoice", "Normalisation", "conv4", "encoder", "mlp"]
