"""SimpleShot (Wang, Chao, Weinberger & van der Maaten 2019)."""

from kshot_simpleshot.simpleshot import SimpleShot

__all__ = ["SimpleShot"]
