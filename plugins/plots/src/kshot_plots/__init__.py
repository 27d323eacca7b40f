"""Pictures of results and of learners' traces, and a hook that writes them."""

from kshot_plots.figures import curves, fit, of_result, of_trace, scenes, trajectories, weights
from kshot_plots.hook import Plots, write

__all__ = ["Plots", "curves", "fit", "of_result", "of_trace", "scenes", "trajectories", "weights", "write"]
