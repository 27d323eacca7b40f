"""The encoder keeps the rules of the conformance kit, with weights of a local file."""

from pathlib import Path
from tempfile import gettempdir

import torch
import torchvision.models

from kshot.testing import suite

path = Path(gettempdir()) / f"kshot-test-torchvision-{torchvision.__version__}.pth"
if not path.exists():
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        torch.save(torchvision.models.get_model("mnasnet0_5").state_dict(), path)

conformance = suite(encoder="torchvision", options={"model": "mnasnet0_5", "weights": str(path)})
