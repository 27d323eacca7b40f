"""The encoder keeps the rules of the conformance kit, with weights of a local file."""

from pathlib import Path
from tempfile import gettempdir

import timm
import torch

from kshot.testing import suite

path = Path(gettempdir()) / f"kshot-test-timm-{timm.__version__}.pth"
if not path.exists():
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        torch.save(timm.create_model("test_resnet", num_classes=0).state_dict(), path)

conformance = suite(encoder="timm", options={"model": "test_resnet", "weights": str(path)})
