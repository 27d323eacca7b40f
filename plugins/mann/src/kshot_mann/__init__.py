"""Memory-augmented neural networks (Santoro et al. 2016), and an LSTM as their baseline."""

from kshot_mann.lstm import LSTM
from kshot_mann.mann import MANN

__all__ = ["LSTM", "MANN"]
