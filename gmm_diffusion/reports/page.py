"""The result page: one self-contained HTML file."""

import base64
import html
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from gmm_diffusion import files

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; font-size: 14px } td, th { padding: .25em .7em; text-align: right; border-bottom: 1px solid #ddd }
td { white-space: nowrap } td:first-child, th:first-child { text-align: left }
.best { font-weight: 600 } .control td, .data td { color: #777 }
.row { display: flex; align-items: center; gap: 1em } .row span { width: 15em; font-size: 14px } .row img { flex: 1; max-width: 56em }
img { image-rendering: pixelated; max-width: 100%; min-width: 0 } pre { background: #f5f5f5; padding: .8em; overflow-x: auto; font-size: 12.5px }
"""


class Row(NamedTuple):
  """One sampler.

  Attributes:
    name: of the sampler.
    kind: 'sampler', 'control' or 'data'.
    control: name of its isotropic control, or ''.
    nfe: denoiser calls per sample; 0 for images that were not drawn here.
    metrics: name -> Estimate; a row without any is shown, but not in the table.
    strip: PNG of the seeds that all samplers share.
    report: moment report as text, or ''.
  """

  name: str
  kind: str
  control: str
  nfe: int
  metrics: dict[str, Any]
  strip: bytes
  report: str


def image(png: bytes) -> str:
  """An image inside the page."""
  return f'<img alt="" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _table(rows: Sequence[Row], lower: dict[str, bool]) -> str:
  metrics = [name for name in lower if any(name in row.metrics for row in rows)]
  best = {}
  for name in metrics:
    values = [
      row.metrics[name].value for row in rows if name in row.metrics and row.kind != 'data'
    ]  # those are never lacking
    best[name] = (min if lower[name] else max)(values)
  sampled = any(row.nfe for row in rows)
  arrow = {True: '↓', False: '↑'}
  head = ''.join(f'<th>{name} {arrow[lower[name]]}</th>' for name in metrics)
  body = []
  for row in rows:
    if not row.metrics:
      continue
    cells = ''.join(
      f'<td{" class=best" if row.kind != "data" and row.metrics[name].value == best[name] else ""}>{row.metrics.get(name, "")}</td>'
      for name in metrics
    )
    drawn = f'<td>{row.nfe or ""}</td>' * sampled, f'<td>{html.escape(row.control)}</td>' * sampled
    body.append(
      f'<tr class={row.kind}><td>{html.escape(row.name)}</td>{drawn[0]}{cells}{drawn[1]}</tr>'
    )
  head = (
    '<th>sampler</th><th>evaluations</th>' + head + '<th>its control</th>'
    if sampled
    else '<th>images</th>' + head
  )
  return f'<table><tr>{head}</tr>{"".join(body)}</table>'


def write(
  path: str,
  title: str,
  command: str,
  facts: dict[str, Any],
  rows: Sequence[Row],
  lower: dict[str, bool],
  curve: bytes | None,
  config: dict[str, Any],
  notes: Sequence[str],
) -> None:
  """Writes the page.

  Args:
    path: the file.
    title, command: shown as they are.
    facts: a list of "name: value" at the top.
    rows: one per sampler, in order.
    lower: metric -> whether lower is better; its order is that of the columns.
    curve: PNG of the training curve, if there is one.
    config: shown at the end.
    notes: sentences below the table.
  """
  strips = ''.join(
    f'<div class=row><span>{html.escape(row.name)}</span>{image(row.strip)}</div>' for row in rows
  )
  mixtures = [row for row in rows if row.report]
  reports = ''.join(
    f'<details{" open" * (row is mixtures[0])}><summary>{html.escape(row.name)}</summary><pre>{html.escape(row.report)}</pre></details>'
    for row in mixtures
  )
  parts = [
    f'<!doctype html><html lang=en><meta '
    f'charset=utf-8><title>{html.escape(title)}</title><style>{STYLE}</style>',
    f'<h1>{html.escape(title)}</h1><pre>{html.escape(command)}</pre>',
    '<ul>'
    + ''.join(f'<li>{html.escape(str(k))}: {html.escape(str(v))}</li>' for k, v in facts.items())
    + '</ul>',
    '<h2>Metrics</h2>',
    _table(rows, lower),
    ''.join(f'<p>{html.escape(note)}</p>' for note in notes),
    f'<h2>{"Same seeds, side by side" if any(row.nfe for row in rows) else "The first images"}</h2>',
    strips,
  ]
  if reports:
    parts += [
      '<h2>Moment report</h2><p>What each step does to q(x_s | x_0), whose mean should be a_s x_0 '
      'and whose covariance b_s² I. Residuals: length of the mean offset, and ‖covariance error‖ / '
      '√D; added var.: per coordinate.</p>',
      reports,
    ]
  if curve:
    parts.append('<h2>Training</h2>' + image(curve))
  parts.append(
    f'<h2>Config</h2><details><summary>all '
    f'keys</summary><pre>{html.escape(json.dumps(config, indent=1))}</pre></details></html>'
  )
  files.write_text(path, '\n'.join(parts))


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
  """An HTML table of anything that can be printed."""
  line = lambda tag, cells: (
    '<tr>' + ''.join(f'<{tag}>{html.escape(str(cell))}</{tag}>' for cell in cells) + '</tr>'
  )
  return f'<table>{line("th", head)}{"".join(line("td", row) for row in rows)}</table>'


def figure(png: bytes, caption: str) -> str:
  """A picture with a line below it."""
  return f'<figure>{image(png)}<figcaption>{html.escape(caption)}</figcaption></figure>'


def plain(
  path: str,
  title: str,
  command: str,
  sections: Sequence[tuple[str, Sequence[str]]],
  config: dict[str, Any],
) -> None:
  """Writes a page of sections (heading, parts); a part is what `table` or `figure` return, or a
  paragraph."""
  parts = [
    f'<!doctype html><html lang=en><meta '
    f'charset=utf-8><title>{html.escape(title)}</title><style>{STYLE}</style>',
    f'<h1>{html.escape(title)}</h1><pre>{html.escape(command)}</pre>',
  ]
  for heading, content in sections:
    parts.append(f'<h2>{html.escape(heading)}</h2>')
    parts += [part if part.startswith('<') else f'<p>{html.escape(part)}</p>' for part in content]
  parts.append(
    f'<h2>Config</h2><details><summary>all '
    f'keys</summary><pre>{html.escape(json.dumps(config, indent=1))}</pre></details></html>'
  )
  files.write_text(path, '\n'.join(parts))
