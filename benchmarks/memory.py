"""Measure the peak memory of training (20-way) and evaluation (5w1s15q) with conv4-64, kshot against easyfsl.

Each runs in a separate process, whose peak is the kernel's high-water mark of its resident memory. easyfsl reads PNG
files one by one without workers, which takes the least memory, so that no copy of the images counts against it. The
figures of kshot include its mapped table of drawings (the pages that were touched) and the freed blocks that it makes
malloc keep. A ratio is the peak of kshot over that of easyfsl, so a value below 1 means that kshot needs less.

Run ``python benchmarks/memory.py``; add ``--quick`` to test the script only.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import (
    EASYFSL_PATCH,
    Report,
    arguments,
    easyfsl_conv4,
    easyfsl_from_files,
    easyfsl_step,
    find_omniglot,
    fresh,
    peak,
    picture_folders,
    require,
    spread,
)  # fmt: skip


def part_kshot(what: str, number: int, keep: bool) -> dict[str, Any]:
    """Run ``number`` training steps or evaluation episodes of kshot; returns peaks in MB."""
    import kshot

    tasks = kshot.tasks("omniglot", way=20, shot=1, query=5)
    other = kshot.tasks("omniglot", way=5, shot=1, query=15)
    learner = kshot.learner("protonet", tasks.spec)
    engine = kshot.Engine(learner, tasks, validate_on=other, backend=kshot.Cpu(keep_freed_memory=keep))
    imported = peak()
    if what == "training":
        engine.train(number)
    else:
        engine.evaluate(number)
    return {"peak": peak(), "imported": imported, "backend": dict(engine.backend.describe())}


def part_easyfsl(what: str, number: int, folders: list[str]) -> dict[str, Any]:
    """Run ``number`` training steps or evaluation episodes of easyfsl; returns peaks in MB."""
    import torch
    from easyfsl.methods import PrototypicalNetworks

    model = PrototypicalNetworks(easyfsl_conv4())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    way, query = (20, 5) if what == "training" else (5, 15)
    with tempfile.TemporaryDirectory() as place:
        sampler = {"n_way": way, "n_shot": 1, "n_query": query, "n_tasks": number}
        loader = easyfsl_from_files(folders, Path(place), 0, sampler)
        imported = peak()
        if what == "training":
            model.train()
            for episode in itertools.islice(loader, number):
                easyfsl_step(model, optimizer, episode)
        else:
            model.eval()
            with torch.no_grad():
                for support_images, support_labels, query_images, _, _ in loader:
                    model.process_support_set(support_images, support_labels)
                    model(query_images)
    return {"peak": peak(), "imported": imported}


PARTS: dict[str, Callable[..., dict[str, Any]]] = {"kshot": part_kshot, "easyfsl": part_easyfsl}


def main() -> None:
    options = arguments(__doc__, part=True)
    root, data = find_omniglot()
    if options.part:
        print(json.dumps(PARTS[options.part](**json.loads(options.options))))
        return
    require("easyfsl", "torchvision")
    report = Report("memory", [f"data: {data}", EASYFSL_PATCH])
    with tempfile.TemporaryDirectory() as unpacked:
        folders = [str(f) for f in picture_folders(root, Path(unpacked))]
        for what, number in (("evaluation", 60), ("training", 20)):  # 200 and 60 give the same within 5 %
            number, rounds = (3, 1) if options.quick else (number, 2)
            runs: dict[str, tuple[str, dict[str, Any]]] = {
                "kshot": ("kshot", {"keep": True}),
                "kshot, keep_freed_memory=False": ("kshot", {"keep": False}),
                "easyfsl": ("easyfsl", {"folders": folders}),
            }
            peaks = {}
            for name, (part, given) in runs.items():
                answers = [fresh(__file__, part, what=what, number=number, **given) for _ in range(rounds)]
                peaks[name] = spread([a["peak"] for a in answers])[0]
                above = spread([a["peak"] - a["imported"] for a in answers])[0]
                run = f"{what}, {number}: {name}"
                report.rows.append({"run": run, "peak MB": peaks[name], "of it after start-up": above})
            for name in ("kshot, keep_freed_memory=False", "kshot"):
                ratio = peaks[name] / peaks["easyfsl"]
                shape = "20-way 1-shot 5-query" if what == "training" else "5w1s15q"
                answer = f"the peak memory of {name} is {{}} times that of easyfsl ({what}, {shape})"
                report.ratios.append((ratio, answer))
    report.finish(options)


if __name__ == "__main__":
    main()
