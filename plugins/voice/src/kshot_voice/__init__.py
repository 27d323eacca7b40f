"""An encoder of voices and other sounds, whose weights are in the package."""

from kshot_voice.encoder import VoiceEncoder

__all__ = ["VoiceEncoder"]
