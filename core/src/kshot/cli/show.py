"""Format plugins as text and as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from kshot.registry import Plugin, PluginInfo


def plugin_dict(plugin: Plugin) -> dict[str, Any]:
    """Return all that is known of a plugin without importing it, as plain values."""
    return {f.name: getattr(plugin, f.name) for f in attrs.fields(type(plugin))}


def plugin_table(plugins: Sequence[Plugin]) -> str:
    """Return a table with one line per plugin: name, group, kinds, state, summary; and the reason if it is not ok."""
    from kshot.registry.manifest import shortened

    head = ("NAME", "GROUP", "KINDS", "STATE", "SUMMARY")
    rows = [(shortened(p.name, 64), p.group, ", ".join(p.kinds) or "-", p.state, shortened(p.summary)) for p in plugins]
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(4)]
    lines = [_line(head, widths)]
    for plugin, row in zip(plugins, rows, strict=True):
        lines.append(_line(row, widths))
        if plugin.state != "ok":
            lines.append(f"  {plugin.state}: {shortened(plugin.reason.partition(chr(10))[0])}")
    return "\n".join(lines)


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
    return "  ".join([*cells, row[-1]]).rstrip()


def info_dict(info: PluginInfo, factory: Any) -> dict[str, Any]:
    """Return a plugin with its options as plain values; for a learner also its needs and how it is trained."""
    options = [
        {"name": o.name, "type": o.type, "default": _json(o.default), "required": o.required, "doc": o.doc}
        for o in info.options
    ]
    return {**plugin_dict(info.plugin), "options": options, "doc": info.doc, **_learner_facts(factory)}


def info_text(info: PluginInfo, factory: Any) -> str:
    """Return the description of a plugin, see ``info_dict``, as text."""
    from kshot.registry.options import table

    plugin = info.plugin
    paragraphs = [f"{plugin.who}, {plugin.state}, {plugin.lifecycle}"]
    if plugin.kinds:
        paragraphs[0] += f"; {', '.join(plugin.kinds)}"
    if plugin.aliases:
        paragraphs[0] += f"; also called {', '.join(plugin.aliases)}"
    import inspect

    paragraphs.append(inspect.cleandoc(info.doc) or plugin.summary or "(no documentation)")
    paragraphs.append(f"Options:\n{table(info.options)}" if info.options else "It takes no options.")
    facts = _learner_facts(factory)
    if "needs" in facts:
        paragraphs.append(
            _lines("Declared needs (its options may change some of them):", _needs_in_words(facts["needs"]))
        )
    if "training" in facts:
        heading = "Default training (a first good result in minutes; settings of papers are in the folder recipes):"
        paragraphs.append(_lines(heading, _training_in_words(facts["training"])))
    return "\n\n".join(paragraphs)


def _lines(heading: str, lines: Sequence[str]) -> str:
    return "\n".join([heading, *(f"  {line}" for line in lines)])


def _needs_in_words(needs: dict[str, Any]) -> list[str]:
    """Return what a learner accepts, asks for and promises; of the fields with their defaults only the kinds."""
    low, high = needs["input_range"] or (None, None)
    levels = {"optional": " (optional)", "required": " (required)"}
    wishes = {"unlabelled": "unlabelled examples", "semantics": "a vector that describes each class"}
    queries = {"joint": "all queries together, because they affect each other's predictions"}
    queries["at_adapt"] = "the inputs of the queries while adapting"
    groups = {
        "accepts": [
            f"tasks of kind {', '.join(needs['kinds'])}",
            "any number of classes (way)" if needs["variable_way"] else "",
            "any number of parameters" if needs["variable_parameters"] else "",
            "a support without examples (zero-shot)" if needs["zero_shot"] else "",
            f"only inputs from {low} to {high}" if needs["input_range"] else "",
            f"only {needs['actions']} actions" if needs["actions"] != "any" else "",
        ],
        "asks for": [
            *(f"{text}{levels[needs[name]]}" if needs[name] != "no" else "" for name, text in wishes.items()),
            "labelled examples from outside the tasks" if needs["external"] else "",
            queries.get(needs["queries"], ""),
            "complete meta-batches, never chunks" if needs["couples_tasks"] else "",
            f"up to {needs['rollouts']} rollouts while adapting" if needs["rollouts"] > 1 else "",
        ],
        "promises": [
            "the gradient is the derivative of the reported loss" if needs["exact_gradient"] else "",
            "the numbering of the classes does not matter" if "labels" in needs["invariant"] else "",
            "the order of the support does not matter" if "order" in needs["invariant"] else "",
        ],
    }
    return [f"{group}: {'; '.join(filter(None, texts))}" for group, texts in groups.items() if any(texts)]


def _training_in_words(training: dict[str, Any]) -> list[str]:
    """Return the default training without the options that have no effect."""
    shown = {n: v for n, v in training.items() if n not in ("tasks", "every", "factor", "warmup", "clip")}
    if training["schedule"] == "step":
        shown |= {name: training[name] for name in ("every", "factor")}
    shown |= {name: training[name] for name in ("warmup", "clip") if training[name]}
    lines = [f"{name}: {value}" for name, value in shown.items()]
    if training["tasks"]:
        options = ", ".join(f"{name} {value}" for name, value in training["tasks"].items())
        lines.append(f"tasks while training: {options}")
    return lines


def _learner_facts(factory: Any) -> dict[str, dict[str, Any]]:
    """Return needs and training defaults of a learner's class as plain values, if they are class attributes."""
    facts = {}
    for name, attribute in (("needs", "needs"), ("training", "training_defaults")):
        value = getattr(factory, attribute, None)
        if value is not None and not isinstance(value, property) and attrs.has(type(value)):
            fields = attrs.asdict(value, recurse=False)
            facts[name] = {key: _json(item) for key, item in fields.items()}
    return facts


def _json(value: Any) -> Any:
    """Return plain values unchanged, sets as sorted lists, and anything else as text."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        return {str(key): _json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    return getattr(value, "__qualname__", None) or str(value)


def examine() -> dict[str, Any]:
    """Import every plugin; return the installed software and the state of each plugin, as plain values.

    The notes are about distributions that are damaged or left over, and about what importing a plugin changed.
    """
    import platform
    import warnings

    import torch

    from kshot import registry
    from kshot._distributions import problems
    from kshot._engine.cpu import has_bfloat16
    from kshot._engine.provenance import version
    from kshot.errors import KshotError

    notes = problems()
    for plugin in registry.plugins():
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", UserWarning)
                registry.load(plugin.name, plugin.group)
        except KshotError:
            pass  # its state now says why
        notes += [str(w.message) for w in caught if w.category is UserWarning and plugin.who in str(w.message)]
    plugins = registry.plugins()
    return {
        "ok": all(plugin.state == "ok" for plugin in plugins),
        "kshot": version("kshot"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "bfloat16": has_bfloat16(),
        "cuda": torch.cuda.is_available(),
        "plugins": [plugin_dict(plugin) for plugin in plugins],
        "notes": notes,
    }


def doctor_text(report: dict[str, Any]) -> str:
    """Return the report of ``examine`` as text; of plugins that are not ok with the full reason and traceback."""
    lines = [
        f"kshot {report['kshot']}, Python {report['python']}, torch {report['torch']}, {report['platform']}",
        f"{report['threads']} threads, bfloat16 {'native' if report['bfloat16'] else 'not native'}, "
        f"CUDA {'there' if report['cuda'] else 'not there'}",
    ]
    bad = [plugin for plugin in report["plugins"] if plugin["state"] != "ok"]
    for plugin in bad:
        who = f"{plugin['name']} ({plugin['group']}, {plugin['distribution']} {plugin['version']})"
        lines.append(f"{who} is {plugin['state']}: {plugin['reason']}")
    lines += [f"note: {note}" for note in report["notes"]]
    lines.append(f"{len(report['plugins']) - len(bad)} plugins ok, {len(bad)} not")
    return "\n".join(lines)
