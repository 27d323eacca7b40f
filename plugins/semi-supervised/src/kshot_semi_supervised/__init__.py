"""A view that turns classification tasks into semi-supervised ones (Ren et al. 2018)."""

from kshot_semi_supervised.view import SemiSupervised

__all__ = ["SemiSupervised"]
