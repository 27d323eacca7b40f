"""Fine-tuning on the support (Hu, Li, Stuehmer, Kim & Hospedales 2022)."""

from kshot_fine_tune.fine_tune import FineTune

__all__ = ["FineTune"]
