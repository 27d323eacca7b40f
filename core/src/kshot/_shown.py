"""Short texts and HTML for values that users look at in a console or a notebook."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kshot.errors import Unavailable

MOST = 12
"""Rows or pictures of one kind that are shown."""


def needed(module: str, who: str) -> Any:
    """Import a package that a user has for looking at results.

    Raises:
        Unavailable: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        top = module.partition(".")[0]
        raise Unavailable(f"{who}: needs {top}, which is not installed: pip install {top}") from error


def shape(tensor: Any) -> str:
    """Return the shape of a tensor or array as text, ``[2, 5, 6]``, or ``none`` without one."""
    return "none" if tensor is None else str(list(tensor.shape))


def differing(value: Any, fields: Iterable[Any]) -> str:
    """Return the fields of an attrs object that differ from their defaults, as a call that would make it.

    Args:
        value: the object.
        fields: its fields, ``attrs.fields(cls)``; those without a default are always shown.
    """
    shown = [
        f"{field.name}={_plain(getattr(value, field.name))}"
        for field in fields
        if getattr(value, field.name) != _default(field)
    ]
    return f"{type(value).__name__}({', '.join(shown)})"


def _default(field: Any) -> Any:
    factory = getattr(field.default, "factory", None)
    return field.default if factory is None else factory()


def _plain(value: Any) -> str:
    return f"{{{', '.join(map(repr, sorted(value)))}}}" if isinstance(value, frozenset) else repr(value)


def way_and_shot(way: Any, shot: Any, query: Any) -> str:
    """Return ``5-way 1-shot 15-query`` of the numbers that there are; a range as ``2..5-way``."""

    def text(count: Any) -> str:
        return f"{count[0]}..{count[1]}" if isinstance(count, tuple) else str(count)

    named = (("way", way), ("shot", shot), ("query", query))
    return " ".join(f"{text(count)}-{name}" for name, count in named if count is not None)


def described(tasks: Any) -> str:
    """Return tasks in one line: their class, what an episode has, and the splits. No data are loaded."""
    spec = tasks.spec
    numbers = way_and_shot(spec.way, spec.shot, spec.query) or spec.kind
    return f"<{type(tasks).__name__}: {numbers}, inputs {list(spec.input_shape)}, splits {', '.join(spec.splits)}>"


def table(rows: Sequence[Sequence[Any]], head: Sequence[str]) -> str:
    """Return an HTML table; the values are escaped."""
    import html  # here, as listing plugins needs none of it

    cells = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(v))}</td>" for v in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"


def facts(title: str, values: Mapping[str, Any]) -> str:
    """Return a title and a table of names and values as HTML; values that are None or empty are left out."""
    import html

    rows = [(name, value) for name, value in values.items() if value not in (None, "", (), {})]
    return f"<b>{html.escape(title)}</b>{table(rows, ('', ''))}"


def are_pictures(x: Any) -> bool:
    """Return whether inputs [.., C, H, W] look like pictures of one or three channels with numbers from 0 to 1."""
    if getattr(x, "ndim", 0) < 3 or x.shape[-3] not in (1, 3) or min(x.shape[-2:]) < 8 or not x.numel():
        return False
    return bool((x.min() >= 0) & (x.max() <= 1))


def picture(x: Any, side: int = 56) -> str:
    """Return one input [C, H, W] with numbers from 0 to 1 as an HTML image; an empty text without Pillow."""
    import base64
    import io

    try:
        from PIL import Image
    except ImportError:
        return ""
    pixels = (x.detach().cpu().float() * 255).round().byte().permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img src="data:image/png;base64,{data}" height="{side}" style="image-rendering: pixelated; margin: 1px">'


def grid(rows: Sequence[tuple[str, Any, Any]]) -> str:
    """Return a table of pictures as HTML, with a row for each class: its name, the support and the queries.

    Args:
        rows: name, pictures of the support and pictures of the queries; at most ``MOST`` of each are shown.
    """

    import html

    def cell(pictures: Any) -> str:
        more = f" … {len(pictures)} in all" if len(pictures) > MOST else ""
        return f"<td>{''.join(map(picture, pictures[:MOST]))}{more}</td>"

    lines = [f"<tr><td>{html.escape(name)}</td>{cell(s)}{cell(q)}</tr>" for name, s, q in rows[:MOST]]
    more = f"<tr><td>… {len(rows)} classes in all</td></tr>" if len(rows) > MOST else ""
    head = "<tr><th></th><th>support</th><th>queries</th></tr>"
    return f"<table><thead>{head}</thead><tbody>{''.join(lines)}{more}</tbody></table>"
