"""The encoder keeps the rules of the conformance kit, with weights of a local folder."""

import json
from pathlib import Path
from tempfile import gettempdir

import open_clip
import torch

from kshot.testing import suite

CONFIG = {
    "model_cfg": {
        "embed_dim": 12,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
    },
    "preprocess_cfg": {},
}
folder = Path(gettempdir()) / f"kshot-test-openclip-{open_clip.__version__}"
if not (folder / "open_clip_config.json").exists():
    folder.mkdir(exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        torch.save(open_clip.CLIP(**CONFIG["model_cfg"]).state_dict(), folder / "open_clip_pytorch_model.bin")
    (folder / "open_clip_config.json").write_text(json.dumps(CONFIG))

conformance = suite(encoder="openclip", options={"model": "ViT-B-32", "weights": str(folder)})
