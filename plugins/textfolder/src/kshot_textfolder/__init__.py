"""Make few-shot tasks of your own texts: a folder that has a folder for each class, or a CSV file."""

from kshot_textfolder.tasks import textfolder

__all__ = ["textfolder"]
