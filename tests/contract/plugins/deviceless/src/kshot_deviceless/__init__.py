"""Raise ``Unavailable`` on import, as a backend without its device does."""

from kshot.errors import Unavailable

raise Unavailable("no such device in this machine")
