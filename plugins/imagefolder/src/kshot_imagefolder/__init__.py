"""Your own images as few-shot tasks: a folder of a folder for each class."""

from kshot_imagefolder.tasks import imagefolder

__all__ = ["imagefolder"]
