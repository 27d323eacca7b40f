"""Your own sounds as few-shot tasks: a folder of a folder for each class."""

from kshot_audiofolder.tasks import audiofolder

__all__ = ["audiofolder"]
