"""Memory-augmented neural networks (Santoro et al. 2016), and an LSTM to compare them with."""

from kshot_mann.lstm import LSTM
from kshot_mann.mann import MANN

__all__ = ["LSTM", "MANN"]
