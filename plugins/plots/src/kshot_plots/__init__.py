"""Pictures of results, of learners' traces and of mistakes, and a hook that writes them."""

from kshot_plots.figures import curves, fit, of_result, of_trace, scenes, trajectories, weights
from kshot_plots.hook import Plots, write
from kshot_plots.mistakes import mistakes

__all__ = ["Plots", "curves", "fit", "mistakes", "of_result", "of_trace", "scenes", "trajectories", "weights", "write"]
