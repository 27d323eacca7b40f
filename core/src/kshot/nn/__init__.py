"""Encoders, networks that adapt and their heads, controllers and memories, and the policy of batch normalisation."""

from kshot.nn.controllers import ControllerName, controller, unroll
from kshot.nn.encoders import Encoder, EncoderChoice, conv4, encoder, infer_output_shape, linear, mlp, strided_conv4
from kshot.nn.heads import Head, find_head
from kshot.nn.memories import memory
from kshot.nn.networks import Network, NetworkChoice, network
from kshot.nn.normalisation import Normalisation, evaluating
from kshot.nn.pretrained import PictureEncoder, Tune, digest_of, tuned

__all__ = [
    "ControllerName",
    "Encoder",
    "EncoderChoice",
    "Head",
    "Network",
    "NetworkChoice",
    "Normalisation",
    "PictureEncoder",
    "Tune",
    "controller",
    "conv4",
    "digest_of",
    "encoder",
    "evaluating",
    "find_head",
    "infer_output_shape",
    "linear",
    "memory",
    "mlp",
    "network",
    "strided_conv4",
    "tuned",
    "unroll",
]
