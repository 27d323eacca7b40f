"""CIFAR-FS keeps every rule for tasks, on images made here in CIFAR-100's shape."""

import numpy as np

from kshot import ClassificationTasks
from kshot.data.tables import Table
from kshot.testing import suite
from kshot_cifar_fs import splits, tasks

names = sorted({name for held in splits.SPLITS.values() for name in held})
y = np.repeat(np.arange(100), 4)
x = np.random.default_rng(0).integers(0, 256, (400, 3, 32, 32), np.uint8)
table = Table(x, {"classes": names, "y": y.tolist()}, None)
suite_of_pools = suite(tasks=ClassificationTasks(tasks.pools(table), way=3, shot=1, query=2, prepare=tasks.prepare))
