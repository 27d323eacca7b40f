"""Measure the first load of Omniglot's drawings, later loads, and their memory, each in a separate process.

The first load decodes all drawings and writes a table into an empty cache; a later load maps this table. Seconds are
those of making the tasks, with everything imported before. For comparison, Pillow decodes and shrinks the same drawings
in one process and stores nothing on disk. The files are read once before, so that the speed of the disk is not
measured. The last ratio is the time of Pillow over that of the first load.

Run ``python benchmarks/loading.py``; add ``--quick`` to test the script only. Without the two original zips there is no
comparison with Pillow.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import PARTS as ARCHIVES
from bench import Report, arguments, find_omniglot, fresh, ratio_of, resident, spread


def part_kshot(cache: str) -> dict[str, Any]:
    """Load the drawings and sample 320 episodes.

    Returns:
        The seconds of loading; the memory in MB before it, after it, and after sampling; the size of the table in MB,
        and its number of drawings.
    """
    import torch

    import kshot
    import kshot_omniglot.tasks

    torch.set_num_threads(1)
    kshot.tasks("toy").sample("train", [0])  # so that the registry and the sampler are ready
    before = resident()
    started = time.perf_counter()
    tasks = kshot_omniglot.tasks.omniglot(way=5, cache=cache)
    seconds = time.perf_counter() - started
    loaded = resident()
    for i in range(0, 320, 32):
        tasks.sample("train", range(i, i + 32))
    return {"seconds": seconds, "before": before, "loaded": loaded, "sampled": resident(),
            "table": tasks.pool("train").x.numel() / 2**20, "drawings": len(tasks.pool("train").x)}  # fmt: skip


def part_pillow(root: str) -> dict[str, Any]:
    """Decode all drawings with Pillow; returns the seconds and the number of drawings."""
    import numpy as np
    from PIL import Image

    started = time.perf_counter()
    images = []
    for part in ARCHIVES:
        with zipfile.ZipFile(Path(root) / f"{part}.zip") as archive:
            for name in archive.namelist():
                if name.endswith(".png"):
                    image = Image.open(io.BytesIO(archive.read(name))).convert("L")
                    images.append(np.asarray(image.resize((28, 28), Image.Resampling.BOX)))
    table = np.stack(images)
    return {"seconds": time.perf_counter() - started, "drawings": len(table)}


PARTS: dict[str, Callable[..., dict[str, Any]]] = {"kshot": part_kshot, "pillow": part_pillow}


def main() -> None:
    options = arguments(__doc__, part=True)
    root, data = find_omniglot()
    if options.part:
        print(json.dumps(PARTS[options.part](**json.loads(options.options))))
        return
    zips = [root / f"{part}.zip" for part in ARCHIVES] if root else []
    with_pillow = bool(zips) and all(path.is_file() for path in zips)
    for path in zips if with_pillow else []:
        path.read_bytes()  # brings the file into the page cache
    os.environ.pop("KSHOT_CACHE", None)
    rounds = 1 if options.quick else 3
    times: dict[str, list[float]] = {}
    answer: dict[str, Any] = {}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as cache:
            times.setdefault("first load", []).append(fresh(__file__, "kshot", cache=cache)["seconds"])
            for _ in range(rounds):
                answer = fresh(__file__, "kshot", cache=cache)
                times.setdefault("later load", []).append(answer["seconds"])
        if with_pillow:
            pillow = fresh(__file__, "pillow", root=str(root))
            times.setdefault("Pillow, one process", []).append(pillow["seconds"])
    report = Report("loading", [f"data: {data}"])
    for name, values in times.items():
        middle, least, most = spread(values)
        report.rows.append({"run": name, "seconds": middle, "least": least, "most": most})
    before, loaded, sampled = (answer[name] for name in ("before", "loaded", "sampled"))
    for kind in ("anonymous", "file"):
        report.notes.append(
            f"resident memory at a later load, {kind}: {loaded[kind] - before[kind]:+.1f} MB, after 320 "
            f"episodes {sampled[kind] - before[kind]:+.1f} MB; the table has {answer['table']:.1f} MB, "
            f"{answer['drawings']} drawings"
        )
    growth = loaded["all"] - before["all"]
    report.ratios.append((growth / answer["table"], "a later load increases the resident memory by {} times the table"))
    middle_later = spread(times["later load"])[0]
    first_by_later = spread(times["first load"])[0] / middle_later
    report.ratios.append((first_by_later, "a later load is {} times as fast as the first"))
    if with_pillow:
        ratio = ratio_of(times["Pillow, one process"], times["first load"])
        what = f"the first load is {{}} times as fast as Pillow in one process ({pillow['drawings']} drawings)"
        report.ratios.append((ratio, what))
    report.finish(options)


if __name__ == "__main__":
    main()
