"""Semi-supervised few-shot tasks (Ren et al. 2018), as a view of any labelled ones."""

from kshot_semi_supervised.view import SemiSupervised

__all__ = ["SemiSupervised"]
