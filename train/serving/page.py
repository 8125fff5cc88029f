"""The page /docs, made from the description of the interface: one page, without scripts, that needs no network."""

import base64
import hashlib
import html
import json
from typing import Any

_STYLE = (
    ":root{color-scheme:light dark}"
    "body{font:16px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem;overflow-wrap:anywhere}"
    "table{display:block;overflow-x:auto}td,th{text-align:left;padding:.2rem .8rem .2rem 0;vertical-align:top;"
    "overflow-wrap:break-word}h2 code{font-size:1.1rem}"
)
POLICY = (
    f"default-src 'none'; style-src 'sha256-{base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()}'; "
    "base-uri 'none'; form-action 'none'"
)
"""What the page may load, as browsers hold it to: nothing but its own style."""


def page(schema: dict[str, Any]) -> str:
    """HTML of an OpenAPI description: every path with its query and answers."""
    about = schema["info"]
    parts = [f"<h1>{_text(about['title'])} {_text(about['version'])}</h1>", f"<p>{_text(about.get('description'))}</p>"]
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            parts += [
                f"<h2><code>{method.upper()} {_text(path)}</code></h2>",
                f"<p>{_text(operation.get('description') or operation.get('summary'))}</p>",
            ]
            rows = [
                (one["name"], _kind(one["schema"]), one.get("description")) for one in operation.get("parameters", [])
            ]
            parts += _table(("query", "values", "meaning"), rows)
            bodies = operation.get("requestBody", {}).get("content", {})
            parts += _table(("body", "meaning"), [(kind, one.get("description")) for kind, one in bodies.items()])
            answers = operation["responses"].items()
            parts += _table(("status", "answer"), [(status, one["description"]) for status, one in answers])
    parts.append('<p>The same for programs: <a href="openapi.json">openapi.json</a></p>')
    title = _text(about["title"])
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style>"
        f"{''.join(parts)}</html>"
    )


def _text(value: object) -> str:
    return html.escape("" if value is None else str(value))


def _kind(schema: dict[str, Any]) -> str:
    """The values that a parameter takes, in words."""
    kinds = [one for one in schema.get("anyOf", [schema]) if one.get("type") != "null"]
    words = [" or ".join(one["enum"]) if "enum" in one else one.get("type", "") for one in kinds]
    bounds = [f" from {one['minimum']:g} to {one['maximum']:g}" for one in kinds if {"minimum", "maximum"} <= {*one}]
    usual = f"; {json.dumps(schema['default'])}" if schema.get("default") is not None else ""
    return " or ".join(words) + "".join(bounds) + usual


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> list[str]:
    if not rows:
        return []
    cells = [f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>" for row in rows]
    return [f"<table><tr>{''.join(f'<th>{_text(name)}</th>' for name in head)}</tr>{''.join(cells)}</table>"]
