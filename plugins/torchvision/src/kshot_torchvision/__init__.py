"""The classifiers of torchvision as encoders of pictures: ``torchvision:NAME``."""

from kshot_torchvision.encoder import torchvision_encoder

__all__ = ["torchvision_encoder"]
