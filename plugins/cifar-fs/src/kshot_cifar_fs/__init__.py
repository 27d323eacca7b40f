"""Make tasks of CIFAR-FS, few-shot tasks from CIFAR-100 (Bertinetto, Henriques, Torr & Vedaldi 2019)."""

from kshot_cifar_fs.tasks import cifar_fs

__all__ = ["cifar_fs"]
