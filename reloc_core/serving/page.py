"""The page that explains the interface, from its OpenAPI description; needs nothing from outside."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; }
code, pre { font: 14px/1.4 ui-monospace, monospace; background: #f3f3f1; border-radius: 4px; }
code { padding: .1em .3em; } pre { padding: .8rem; overflow-x: auto; }
table { border-collapse: collapse; } td { padding: .2rem 1rem .2rem 0; vertical-align: top; }
@media (prefers-color-scheme: dark) { body { background: #1b1b1a; color: #e8e6e1; }
code, pre { background: #2b2b29; } a { color: #8ab8ff; } }
"""
_EXAMPLE = (
    "curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg' "
    "'http://HOST:PORT/localize?focal=525'"
)


def api_page(description: Mapping[str, Any]) -> str:
    """HTML with every endpoint, its parameters and its answers."""
    info = description["info"]
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        '<meta name=viewport content="width=device-width, initial-scale=1">',
        f"<title>{escape(info['title'])}</title><style>{_STYLE}</style>",
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1>",
        f"<p>{escape(info['description'])}</p><pre>{escape(_EXAMPLE)}</pre>",
        '<p>The same for programs: <a href="/openapi.json">openapi.json</a></p>',
    ]
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            parts.append(f"<h2><code>{method.upper()} {escape(path)}</code></h2>")
            parts.append(f"<p>{escape(operation.get('summary', ''))}</p>")
            rows = [
                (p["name"], p.get("description") or p.get("schema", {}).get("description", ""))
                for p in operation.get("parameters", [])
            ]
            parts.append(_table(rows))
            answers = operation.get("responses", {})
            parts.append(_table([(code, a.get("description", "")) for code, a in answers.items()]))
    return "\n".join(parts) + "\n"


def _table(rows: list[tuple[str, str]]) -> str:
    cells = (f"<tr><td><code>{escape(a)}</code><td>{escape(b)}" for a, b in rows)
    return f"<table>{''.join(cells)}</table>" if rows else ""
