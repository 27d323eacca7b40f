"""Make few-shot tasks of your own sounds: a folder that has a folder for each class."""

from kshot_audiofolder.tasks import audiofolder

__all__ = ["audiofolder"]
