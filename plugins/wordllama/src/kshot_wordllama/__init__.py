"""An encoder of sentences and other short texts, whose weights come in a wheel."""

from kshot_wordllama.encoder import WordLlama

__all__ = ["WordLlama"]
