"""Every model of timm as an encoder of pictures: ``timm:NAME``."""

from kshot_timm.encoder import timm_encoder

__all__ = ["timm_encoder"]
