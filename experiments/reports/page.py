"""The frame of all pages of reports, with style and script inside, and pictures that hold their data."""

import base64
import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.reports.script import SCRIPT
from experiments.reports.style import STYLE

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def page(
    title: str, over: str, lead: str, sections: Sequence[tuple[str, str]], *, top: str = "", refresh: int = 0
) -> str:
    """A page without external resources.

    Args:
      title: its heading, as text.
      over: a few words above the heading.
      lead: one line below it, as HTML.
      sections: headings and their HTML; empty ones are left out.
      top: HTML above the list of sections.
      refresh: seconds after which the page reloads itself; 0: never.
    """
    again = f' data-refresh="{refresh}"' if refresh else ""
    sections = [(heading, body) for heading, body in sections if body]
    links = "".join(f'<a href="#{_anchor(heading)}">{escape(heading)}</a>' for heading, _ in sections)
    body = "".join(
        f'<section id="{_anchor(heading)}"><h2>{escape(heading)}</h2>{text}</section>' for heading, text in sections
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)} · diffusion_jax</title><style>{STYLE}</style></head><body{again}><main>"
        f'<header><p class="over">{escape(over)}</p><h1>{escape(title)}</h1>'
        f'<p class="lead">{lead}</p></header>'
        f"{top}<nav>{links}</nav>{body}</main><script>{SCRIPT}</script></body></html>\n"
    )


def image_element(path: Path, alt: str) -> str:
    """A picture as an element with embedded data; an empty text if there is none."""
    if not path.is_file() or not path.stat().st_size:
        return ""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{data}">'


def _anchor(title: str) -> str:
    return re.sub(r"\W+", "-", title.lower())


def escape(text: Any) -> str:
    return html.escape(str(text))
