"""Make few-shot tasks of your own images: a folder that has a folder for each class."""

from kshot_imagefolder.tasks import imagefolder

__all__ = ["imagefolder"]
