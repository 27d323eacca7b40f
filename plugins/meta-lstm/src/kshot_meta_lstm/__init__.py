"""Optimization as a model for few-shot learning (Ravi & Larochelle 2017): an LSTM that trains a network."""

from kshot_meta_lstm.gates import Gates
from kshot_meta_lstm.meta_lstm import MetaLSTM

__all__ = ["Gates", "MetaLSTM"]
