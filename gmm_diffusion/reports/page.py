"""Result pages: one self-contained HTML file, made of sections of markup and plain text."""

import base64
import html
import json
from collections.abc import Sequence
from typing import Any

from gmm_diffusion import files

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1120px; margin: 2em auto; padding: 0 1em;
  color: #222 }
h1 { font-size: 1.6em; margin-bottom: .4em } h2 { font-size: 1.2em; margin-top: 2em }
p, li { max-width: 46em } .lead p { font-size: 1.1em; margin: .3em 0 }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: 14px }
td, th { padding: .3em .7em; text-align: right; border-bottom: 1px solid #ddd;
  font-variant-numeric: tabular-nums }
td { white-space: nowrap } th { vertical-align: bottom }
td:first-child, th:first-child { text-align: left; padding-left: 0 }
tr.best td { font-weight: 600 } tr.quiet td { color: #767676 }
.strip { display: flex; align-items: center; gap: 1em; margin: .3em 0; font-size: 14px }
.strip span { flex: none; width: 13em; overflow-wrap: anywhere } .strip div { flex: 1 }
.row { display: flex; flex-wrap: wrap; gap: 1em; align-items: flex-start } .row figure { flex: 1 }
figure { margin: 1em 0 } .row figure { margin: 0 } figcaption { font-size: 14px; max-width: 52em }
img { image-rendering: pixelated; max-width: 100%; display: block }
.smooth img { image-rendering: auto }
pre { background: #f5f5f5; padding: .8em; overflow-x: auto; font-size: 12.5px }
pre.command { white-space: pre-wrap; overflow-wrap: anywhere }
summary { cursor: pointer }
"""


class Html(str):
  """Markup. Any other text is escaped when it becomes a part of a page."""


def _text(part: Any) -> str:
  return part if isinstance(part, Html) else html.escape(str(part))


def image(png: bytes) -> Html:
  """A picture, whose pixels stay sharp where it is shown larger than it is."""
  return Html(f'<img alt="" src="data:image/png;base64,{base64.b64encode(png).decode()}">')


def figure(png: bytes, caption: str = '', smooth: bool = False) -> Html:
  """A picture with a line below it; `smooth` is for plots."""
  kind = ' class=smooth' if smooth else ''
  return Html(f'<figure{kind}>{image(png)}<figcaption>{_text(caption)}</figcaption></figure>')


def lines(texts: Sequence[str]) -> Html:
  """Texts below each other."""
  return Html('<br>'.join(map(_text, texts)))


def row(parts: Sequence[Html]) -> Html:
  """Parts side by side, as many as fit."""
  return Html(f'<div class=row>{"".join(parts)}</div>')


def strip(name: str, png: bytes) -> Html:
  """A name and a picture to its right."""
  return Html(f'<div class=strip><span>{_text(name)}</span><div>{image(png)}</div></div>')


def table(
  head: Sequence[Any], rows: Sequence[Sequence[Any]], kinds: Sequence[str] | None = None
) -> Html:
  """A table of anything that can be printed.

  Args:
    head: of the columns; the first column holds the names of the rows.
    rows: of cells.
    kinds: of each row: '', 'best' (bold) or 'quiet' (grey).
  """
  line = lambda tag, cells: ''.join(f'<{tag}>{_text(cell)}</{tag}>' for cell in cells)
  body = ''.join(
    f'<tr{f" class={kind}" if kind else ""}>{line("td", cells)}</tr>'
    for kind, cells in zip(kinds or [''] * len(rows), rows, strict=True)
  )
  return Html(f'<div class=wide><table><tr>{line("th", head)}</tr>{body}</table></div>')


def folded(title: str, part: Html | str, shown: bool = False) -> Html:
  """A part behind its title, open where it is `shown`; text has a fixed-width font."""
  content = part if isinstance(part, Html) else f'<pre>{_text(part)}</pre>'
  start = '<details open>' if shown else '<details>'
  return Html(f'{start}<summary>{_text(title)}</summary>{content}</details>')


def facts(of: dict[str, Any]) -> Html:
  """A list of "name: value"."""
  return Html(
    '<ul>'
    + ''.join(f'<li>{_text(key)}: {_text(value)}</li>' for key, value in of.items())
    + '</ul>'
  )


Section = tuple[str, Sequence[Html | str]]  # title, and what stands below it


def document(
  path: str,
  title: str,
  lead: Sequence[str],
  sections: Sequence[Section],
  command: str,
  of: dict[str, Any],
  config: dict[str, Any],
) -> None:
  """Writes a page, whole or not at all: what was found, in words; the sections; how it was made.

  Args:
    path: of the file.
    title: of the page.
    lead: sentences with the result, shown first.
    sections: (heading, parts); a part is Html from this module, or text that becomes a paragraph.
    command: what made the page.
    of: facts about how it was made, as "name: value".
    config: all settings, folded away at the end.
  """
  paragraphs = lambda parts: [
    part if isinstance(part, Html) else f'<p>{_text(part)}</p>' for part in parts
  ]
  out = [
    '<!doctype html><html lang=en><head><meta charset=utf-8>'
    '<meta name=viewport content="width=device-width">'
    f'<title>{_text(title)}</title><style>{STYLE}</style></head><body>',
    f'<h1>{_text(title)}</h1>',
    f'<div class=lead>{"".join(paragraphs(lead))}</div>',
  ]
  made = [Html(f'<pre class=command>{_text(command)}</pre>'), facts(of)]
  made.append(folded('Config: all keys', json.dumps(config, indent=1)))
  for heading, parts in [*sections, ('How this was made', made)]:
    out += [f'<h2>{_text(heading)}</h2>', *paragraphs(parts)]
  files.write_text(path, '\n'.join([*out, '</body></html>']))
