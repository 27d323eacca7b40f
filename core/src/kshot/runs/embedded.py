"""Tasks whose inputs are the embeddings of a frozen encoder, which are computed once and cached.

Letters: B meta-batch, n examples, D numbers of an embedding.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kshot import registry
from kshot.episode import Episode, map_inputs
from kshot.errors import DataError, MisfitError, OptionError
from kshot.nn.pretrained import digest_of
from kshot.pools import Pool
from kshot.preparing import Preparation
from kshot.protocols import Backend, Gathered, Pooled, Portable, Redrawn, TaskDistribution
from kshot.sampling import Draw, Gather
from kshot.spec import TaskSpec

log = logging.getLogger("kshot.runs")

VERSION = 1
"""Version of the cached tables; raise it when embeddings are computed otherwise."""

FEW = 256
"""Examples that are embedded without a progress bar."""

COMPARED = 3
"""Examples of a cached table that are embedded again, to see that the table is right."""


class Embedded:
    """A view of tasks whose inputs are embeddings: vectors that a frozen encoder computes from the inputs below.

    Episodes are those of the tasks below, with their classes and examples; only the inputs are replaced. If the tasks
    below have a pool, each of its examples is embedded once, and episodes are drawn from the table of embeddings. The
    table is cached under a name that depends on the examples and on the encoder's weights. ``prepare`` embeds new
    examples in the same way, so a run that was trained on embeddings predicts on files.

    Args:
        of: the tasks below.
        encoder: the name of an encoder plugin, ``{"name": ..., **options}``, an import path, or a module from
            [n, *input] to [n, D]. It is used in evaluation mode, and is not changed.
        backend: where to compute the embeddings; by default a device that is present and has a plugin, else the CPU,
            in float32.
        batch: number of examples that are embedded at once.
        cache: kshot's cache folder; by default KSHOT_CACHE, or the system's. Without the packages of kshot[tables],
            nothing is cached.

    Raises:
        OptionError: ``batch`` is less than 1.
        MisfitError: the tasks have no inputs to embed, as those of reinforcement learning.
        DataError: the encoder does not accept inputs of this shape, or returns something else than vectors.

    Example:
        >>> from kshot.testing import sample_tasks
        >>> tasks = Embedded(sample_tasks.classification(way=3, shot=2), torch.nn.Linear(6, 4))
        >>> tasks.sample("test", [0]).support.x.shape
        torch.Size([1, 6, 4])
    """

    def __init__(
        self,
        of: TaskDistribution,
        encoder: nn.Module,
        *,
        backend: Backend | None = None,
        batch: int = 64,
        cache: Path | str | None = None,
    ) -> None:
        if batch < 1:
            raise OptionError(f"embedded: got batch {batch}, expected at least 1")
        if of.spec.kind in ("control", "objective"):
            raise MisfitError(f"embedded: got {of.spec.kind} tasks, expected tasks whose examples have inputs")
        self.of, self.batch, self.cache = of, batch, cache
        self.encoder = encoder
        self.digest = digest_of(encoder)
        self.backend = registry.backend(precision="float32") if backend is None else backend
        if registry.built(encoder) is None:  # an object of the user's, whose mode and device stay
            encoder = copy.deepcopy(encoder)
        self._embedding = self.backend.place(encoder.eval())
        self._tables: dict[int, _Table] = {}
        try:
            D = self.embed(torch.zeros(1, *of.spec.input_shape)).shape[1]
        except (RuntimeError, ValueError, TypeError, LookupError) as error:
            raise DataError(
                f"embedded: got inputs of shape {list(of.spec.input_shape)}, with which {type(encoder).__name__} "
                f"raised {type(error).__name__}: {str(error).partition(chr(10))[0]}; expected an encoder for inputs of "
                "this shape"
            ) from error
        self.spec: TaskSpec = attrs.evolve(of.spec, input_shape=(D,), input_range=None)
        self.seed = int(getattr(of, "seed", 0))

    @property
    def fingerprint(self) -> str:
        """Identifies the data and the encoder. Asking for it loads the data."""
        return f"{getattr(self.of, 'fingerprint', '')}-embedded-{self.digest}"

    def embed(self, x: Tensor, label: str = "embedding") -> Tensor:
        """Embed inputs [n, *input] as [n, D], on the CPU.

        Raises:
            DataError: the encoder returns something else than a finite vector for each input.
        """
        parts = [self._embed(piece) for piece in shown(x.split(self.batch), len(x), label)]
        return torch.cat(parts)

    def _embed(self, x: Tensor) -> Tensor:
        with torch.inference_mode(), self.backend.autocast():
            z = self._embedding(self.backend.place(x))
        who = type(self.encoder).__name__
        if not isinstance(z, Tensor) or z.ndim != 2 or len(z) != len(x):
            got = f"shape {list(z.shape)}" if isinstance(z, Tensor) else type(z).__name__
            raise DataError(f"embedded: got {got} from {who}, expected embeddings [{len(x)}, D]; flatten its outputs")
        z = z.float().cpu()
        if not bool(torch.isfinite(z).all()):
            raise DataError(f"embedded: got embeddings from {who} that are NaN or infinite, expected finite numbers")
        return z.clone()  # an ordinary tensor, outside of inference mode

    def pool(self, split: str) -> Pool:
        """Return the labelled examples of a split as embeddings (ability ``Pooled``).

        Raises:
            MisfitError: the tasks below have no pool.
        """
        if not isinstance(self.of, Pooled):
            raise MisfitError(f"embedded: got {type(self.of).__name__} without a pool, expected tasks with one")
        return self._table(self.of.pool(split), split).own

    def _table(self, pool: Pool, split: str) -> _Table:
        """Return the embeddings of a pool below."""
        if id(pool) not in self._tables:
            ids = np.unique(pool.table()[0])
            places = np.full(len(pool.x) + 1, -1, np.int64)  # the last place is for the padding of rows, -1
            places[ids] = np.arange(len(ids))
            z = self._cached(pool, ids, split)
            own = Pool(z, places[pool.rows], pool.counts, names=pool.names, semantics=pool.semantics)
            self._tables[id(pool)] = _Table(pool, own, places)
        return self._tables[id(pool)]

    def _cached(self, pool: Pool, ids: NDArray[np.int64], split: str) -> Tensor:
        """Return the embeddings [n, D] of rows of a pool: from the cache, or computed and put there."""

        def computed() -> Tensor:
            label = f"embedding {len(ids)} examples of {split}"
            pieces = np.array_split(ids, max(1, -(-len(ids) // self.batch)))
            return torch.cat([self._embed(pool.gather(piece)) for piece in shown(pieces, len(ids), label)])

        try:
            from kshot.data.tables import Made, cache_folder, open_or_build, open_table
        except ImportError:  # without the packages of kshot[tables]
            return computed()

        def made() -> Made:
            z = computed().numpy()
            return Made({}, "float32", z.shape, [z])

        path = cache_folder("embedded", self.cache) / f"{self._key(pool, ids)}.table"
        if (there := open_table(path, name="embedded", version=VERSION)) is not None:
            # The code of an encoder may have changed although its weights have not: compare some embeddings.
            some = np.unique(np.linspace(0, len(ids) - 1, COMPARED).astype(np.int64))
            expected, z = self._embed(pool.gather(ids[some])), torch.from_numpy(np.asarray(there.x[some]))
            if z.shape == expected.shape and float((z - expected).abs().max()) <= 1e-2 * float(expected.abs().max()):
                return torch.from_numpy(np.asarray(there.x))
            log.warning("note: %s has other embeddings than this encoder, and is computed again", path)
            path.unlink(missing_ok=True)
        table = open_or_build(path, made, name="embedded", version=VERSION)
        return torch.from_numpy(np.asarray(table.x))

    def _key(self, pool: Pool, ids: NDArray[np.int64]) -> str:
        """Return the name of a table: a digest of examples, weights, how the encoder was built, and precision."""
        how = registry.built(self.encoder)
        structure = repr(self.encoder) if how is None else json.dumps(dict(how.identity), default=str)
        precision = str(self.backend.describe().get("precision"))
        key = hashlib.blake2b(pool.digest() + ids.tobytes(), digest_size=16)
        key.update("\0".join([self.digest, structure, precision]).encode())
        return key.hexdigest()

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        """Return the episodes ``indices`` of ``split``, stacked, with embeddings [B, n, D] as inputs."""
        if isinstance(self.of, Gathered):
            return self.of.sample_with(split, indices, self._gather(split))
        return map_inputs(self.of.sample(split, indices), lambda x: self.embed(x.flatten(0, 1)).view(*x.shape[:2], -1))

    def sample_drawn(self, split: str, indices: Sequence[int], draw: Draw, gather: Gather | None = None) -> Episode:
        """Return other episodes, whose classes and examples are drawn by a function (ability ``Redrawn``).

        Raises:
            MisfitError: the tasks below can't be drawn by another function.
        """
        if not isinstance(self.of, Redrawn):
            raise MisfitError(f"embedded: got {type(self.of).__name__}, expected tasks whose examples can be redrawn")
        return self.of.sample_drawn(split, indices, draw, gather or self._gather(split))

    def _gather(self, split: str) -> Gather:
        """Return the function that gathers embeddings [B, n, D] of rows [B, n] of the pool below."""

        def gather(pool: Pool, ids: NDArray[np.int64]) -> Tensor:
            table = self._table(pool, split)
            return table.own.gather(table.places[ids])

        return gather

    def prepare(self, raw: Any) -> Tensor:
        """Prepare raw examples as the tasks below do, and embed them: [n, D] (ability ``Pooled``)."""
        if not isinstance(self.of, Pooled):
            raise MisfitError(f"embedded: got {type(self.of).__name__} without prepare, expected tasks with one")
        return self.embed(self.of.prepare(raw))

    @property
    def preparation(self) -> Preparation | None:
        """The computation of ``prepare``, as a value (ability ``Portable``); None if it can't be stored.

        It can be stored if that of the tasks below can, and the encoder was built by the name of a plugin.
        """
        below = self.of.preparation if isinstance(self.of, Portable) else None
        return None if below is None else embedding(below, self.encoder, self.of.spec, self.digest)


@attrs.frozen(eq=False)
class _Table:
    """Store a pool, the same pool with embeddings in place of its examples, and which row of it has which row's."""

    pool: Pool
    own: Pool
    places: NDArray[np.int64]


def embedding(below: Preparation, encoder: nn.Module, spec: TaskSpec, digest: str | None = None) -> Preparation | None:
    """Return the preparation that prepares raw examples as ``below`` does and embeds them; None if it can't be stored.

    Args:
        below: how examples become inputs of the encoder.
        encoder: the encoder, which was built by the name of a plugin.
        spec: of the tasks that it was built for.
        digest: of its weights, if it is known.
    """
    how = registry.built(encoder)
    if how is None or how.group != "encoders" or not how.portable:
        return None
    return Preparation.of(
        prepared,
        below=below,
        encoder=how.name,
        options=json.dumps(dict(how.options)),
        spec=json.dumps(spec.to_dict()),
        digest=digest_of(encoder) if digest is None else digest,
    )


def prepared(raw: Any, *, below: Preparation, encoder: str, options: str, spec: str, digest: str) -> Tensor:
    """Prepare raw examples as ``below`` does, and embed them by an encoder plugin: [n, D].

    Args:
        raw: examples as ``below`` takes them, such as paths.
        below: how examples become inputs of the encoder.
        encoder: name of the encoder plugin.
        options: its options, as JSON.
        spec: of the tasks that it was built for, as JSON.
        digest: of its weights, see ``kshot.nn.digest_of``.

    Raises:
        PluginError: the plugin is not installed here.
        DataError: its weights have another digest here.
    """
    return _view(encoder, options, spec, digest).embed(below(raw))


@functools.lru_cache(maxsize=2)
def _view(encoder: str, options: str, spec: str, digest: str) -> Embedded:
    """Build the encoder of a stored preparation, and compare the digest of its weights."""
    below = TaskSpec.from_dict(json.loads(spec))
    module = registry.encoder(encoder, below, **json.loads(options))
    if (here := digest_of(module)) != digest:
        raise DataError(
            f"encoder {encoder!r}: got weights with the digest {here}, expected {digest}, by which the inputs were "
            "embedded; install the version of the plugin and the weights with which the run was made"
        )
    return Embedded(_Shape(below), module)


def encoder_of(preparation: Preparation | None, *, build: bool = True) -> tuple[nn.Module | None, TaskSpec | None]:
    """Return the encoder of a preparation that embeds, on the CPU, and the spec of its inputs; else None and None.

    Args:
        preparation: how raw examples become inputs.
        build: whether to build the encoder; otherwise only the spec is returned.

    Raises:
        PluginError, DataError: see ``prepared``.
    """
    if preparation is None or preparation.function is not prepared:
        return None, None
    options = {name: preparation.options[name] for name in ("encoder", "options", "spec", "digest")}
    spec = TaskSpec.from_dict(json.loads(options["spec"]))
    return copy.deepcopy(_view(**options).encoder).cpu() if build else None, spec


@attrs.frozen
class _Shape:
    """Stand for tasks of which only the spec is known."""

    spec: TaskSpec

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        """Refuse, because there are no data."""
        raise DataError("embedded: got a preparation without data, expected tasks to sample from")


def shown(pieces: Sequence[Any], examples: int, label: str) -> Iterator[Any]:
    """Yield the pieces, with a progress bar on a terminal if they are of many examples."""
    visible = examples > FEW and sys.stderr is not None and sys.stderr.isatty()
    if not visible:
        yield from pieces
        return
    with click.progressbar(pieces, label=label, file=sys.stderr) as counted:
        yield from counted
