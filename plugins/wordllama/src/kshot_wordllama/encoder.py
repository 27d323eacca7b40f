"""WordLlama: a text as the mean of a vector for each of its tokens, by Miller (https://github.com/dleemiller/WordLlama).

The vectors are the input embeddings of large language models, reduced to 256 numbers by training on pairs of texts with
the same meaning. The tokens are those of Llama 2.

Letters: n texts, L bytes of an input, T tokens of all n texts together, D numbers of an embedding.
"""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from safetensors.torch import load as load_tensors
from tokenizers import Tokenizer
from torch import Tensor, nn

from kshot import TaskSpec
from kshot.data.texts import from_bytes
from kshot.errors import DataError
from kshot.nn import Tune, tuned

TOKENS, D = 32000, 256

WEIGHTS = ("weights/l2_supercat_256.safetensors", "64b47a2dc493cb8e85944076601189739852d7b64e0e1eedcb1937a251cd9fd5")
"""File of the vectors in the package wordllama, and its SHA-256."""

VOCABULARY = (
    "tokenizers/l2_supercat_tokenizer_config.json",
    "93248f2a9ec36c7b35f700a033d5f36228aae48db61aee31007fa49062cdeb68",
)
"""File of the tokens in the package wordllama, and its SHA-256."""


class WordLlama(nn.Module):
    """Embed texts by the mean of a vector for each of their tokens, at length 1: [n, L] -> [n, 256].

    Texts are inputs as ``kshot.data.texts.to_bytes`` makes them: their bytes in UTF-8, with zeros after the end. The
    order of the words has no effect. An input without a token is embedded as zeros.

    Args:
        spec: spec of the tasks, whose inputs are texts [L] as bytes, such as those of ``textfolder`` with
            ``features="bytes"``, which it uses by itself if a learner uses this encoder.
        tune: which weights are trained: ``none``, or ``all`` vectors, for which ``head`` is another name.

    Raises:
        DataError: the inputs are not vectors, or the files of the package wordllama are missing or others.
        OptionError: ``tune`` is another value.

    Example:
        >>> from kshot.data.texts import to_bytes
        >>> texts = ["Where is my parcel?", "My package has not arrived.", "I forgot my password."]
        >>> x = torch.stack([torch.from_numpy(to_bytes(text, 40)) for text in texts]) / 255
        >>> spec = TaskSpec(kind="classification", input_shape=(40,), way=2, shot=1, query=1)
        >>> with torch.no_grad():
        ...     a, b, c = WordLlama(spec)(x)
        >>> bool(a @ b > a @ c)
        True
    """

    task_options: ClassVar[dict[str, Any]] = {"features": "bytes"}

    def __init__(self, spec: TaskSpec, *, tune: Tune = "none") -> None:
        super().__init__()
        if len(spec.input_shape) != 1 or (spec.input_range or (0, 1)) != (0, 1):
            raise DataError(
                f"wordllama: got inputs of shape {list(spec.input_shape)} in {list(spec.input_range or ('any',))}, "
                "expected texts as bytes [L] within [0, 1]; textfolder makes them with features=bytes"
            )
        self.tokenizer = Tokenizer.from_str(content_of(*VOCABULARY).decode())
        vectors = load_tensors(content_of(*WEIGHTS))["embedding.weight"].float()
        self.vectors = nn.Embedding.from_pretrained(vectors, freeze=False)
        tuned(self, tune)

    def forward(self, x: Tensor) -> Tensor:
        """Embed texts ``x`` [n, L] as [n, 256]."""
        # 1. Read the texts, and divide each into tokens, as numbers [T] and the place of the first of each text [n].
        tokens = [part.ids for part in self.tokenizer.encode_batch(from_bytes(x), add_special_tokens=False)]
        starts = list(itertools.accumulate(map(len, tokens), initial=0))[:-1]
        device = self.vectors.weight.device
        ids = torch.tensor([i for part in tokens for i in part], dtype=torch.int64, device=device)
        # 2. The mean of the vectors of a text, which is 0 for a text without tokens.
        z = F.embedding_bag(ids, self.vectors.weight, torch.tensor(starts, device=device), mode="mean")
        # 3. At length 1, because the length of a mean says how alike its tokens are, and not what they mean.
        return F.normalize(z, dim=1)


def content_of(file: str, digest: str) -> bytes:
    """Return the bytes of a file of the package wordllama, without importing the package.

    Args:
        file: its path in the package.
        digest: its SHA-256.

    Raises:
        DataError: the file is missing, or another one.
    """
    spec = importlib.util.find_spec("wordllama")
    places = [] if spec is None else list(spec.submodule_search_locations or [])
    again = "pip install --force-reinstall wordllama==0.4.0.post1"
    for place in places:
        try:
            content = Path(place, file).read_bytes()
        except OSError:
            continue
        if (found := hashlib.sha256(content).hexdigest()) != digest:
            raise DataError(
                f"wordllama: got the SHA-256 {found} of {Path(place, file)}, expected {digest}, that of version 0.4.0: "
                f"{again}"
            )
        return content
    raise DataError(f"wordllama: got no file {file} in the package wordllama, expected that of version 0.4.0: {again}")
