"""List the classes of each split, as the appendix of Bertinetto et al. gives them.

L. Bertinetto, J. Henriques, P. Torr & A. Vedaldi, "Meta-learning with differentiable closed-form solvers", 2019
(arXiv 1805.08136). Names are CIFAR-100's fine labels.
"""


def _names(text: str) -> tuple[str, ...]:
    """Return the words of a text."""
    return tuple(text.split())


TRAIN = _names(
    """
    apple aquarium_fish bear bee bottle bowl boy bridge bus can castle caterpillar chair clock cloud cockroach couch cup
    dinosaur dolphin elephant forest girl hamster house kangaroo keyboard lawn_mower lion lizard lobster mountain mouse
    mushroom oak_tree orange orchid palm_tree pear pine_tree plate porcupine possum rabbit raccoon ray road seal shrew
    skunk skyscraper snake spider squirrel streetcar sunflower tank tiger train trout tulip turtle willow_tree wolf
    """
)
VAL = _names(
    """
    beaver beetle butterfly camel cattle crab crocodile flatfish lamp maple_tree motorcycle otter sea shark television
    tractor
    """
)
TEST = _names(
    """
    baby bed bicycle chimpanzee fox leopard man pickup_truck plain poppy rocket rose snail sweet_pepper table telephone
    wardrobe whale woman worm
    """
)

SPLITS = {"train": TRAIN, "val": VAL, "test": TEST, "trainval": TRAIN + VAL}
"""Split -> names of its classes; trainval is for a last training once the options are chosen."""
