"""Tasks and encoders without labels: CACTUs (Hsu, Levine & Finn 2018), autoencoders, and SimCLR (Chen et al. 2020)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kshot_cactus.autoencoder import Autoencoder
    from kshot_cactus.simclr import SimCLR
    from kshot_cactus.view import Cactus

__all__ = ["Autoencoder", "Cactus", "SimCLR"]

_MODULES = {"Autoencoder": "autoencoder", "Cactus": "view", "SimCLR": "simclr"}


def __getattr__(name: str) -> Any:
    """Import a class when it is first used, because scikit-learn takes a second and the learners do not need it."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
