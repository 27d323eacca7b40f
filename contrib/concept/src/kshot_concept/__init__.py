"""Deep meta-learning in concept space (Zhou, Wu & Li 2018), and tasks with an external labelled set."""

from kshot_concept.concept import Concept
from kshot_concept.external import WithExternal

__all__ = ["Concept", "WithExternal"]
