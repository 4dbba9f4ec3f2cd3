"""The page of --mode=annotate: its files, its requests, and who may make them. Needs the extra
`annotate`."""

import asyncio
import contextlib
import functools
import importlib.resources
import ipaddress
import json
import os
import socket
import sys
import threading
import traceback
import webbrowser
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from gmm_diffusion import files
from gmm_diffusion.errors import UserError
from gmm_diffusion.tasks.segmentation import annotations
from gmm_diffusion.tasks.segmentation.annotations import Annotations, Stale

LONGEST = 1 << 20  # bytes of a request
STEPS = {'undo': annotations.undone, 'reset': annotations.cleared}
HEADERS = {
  'cache-control': 'no-store',
  'cross-origin-resource-policy': 'same-origin',
  'content-security-policy': "default-src 'none'; img-src 'self' data:; connect-src 'self'; "
  "style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'",
  'referrer-policy': 'no-referrer',
  'x-content-type-options': 'nosniff',
}


def _json(value: Any, status: int = 200) -> Response:
  # names of files may hold what UTF-8 does not
  return Response(json.dumps(value), status, HEADERS, 'application/json')


def _is_loopback(host: str) -> bool:
  try:
    return ipaddress.ip_address(host).is_loopback
  except ValueError:
    return host == 'localhost'


def guarded(app: ASGIApp, local: bool) -> ASGIApp:
  """Refuses what other sites make a browser send: to a name of theirs that leads to this machine
  (`local`: the page is for this machine alone), or from a page of theirs."""

  async def guard(scope: Scope, receive: Receive, send: Send) -> None:
    if scope['type'] == 'http':
      headers = Headers(scope=scope)
      host, origin = headers.get('host', ''), headers.get('origin')
      named = urlsplit(f'//{host}').hostname or ''
      if (local and not _is_loopback(named)) or (origin and urlsplit(origin).netloc != host):
        refusal = 'this page is for this machine alone' if local else 'another site asks for this'
        return await _json({'error': refusal}, 403)(scope, receive, send)
    await app(scope, receive, send)

  return guard


async def _body(request: Request) -> dict[str, Any]:
  """The JSON of a request."""
  if request.headers.get('content-type') != 'application/json':  # which a form cannot send
    raise UserError('a request must be application/json')
  content = b''
  async for part in request.stream():
    content += part
    if len(content) > LONGEST:
      raise UserError(f'a request must be at most {LONGEST} bytes')
  try:
    value = json.loads(content)
  except (ValueError, RecursionError) as error:
    raise UserError(f'a request must be JSON: {error}') from error
  if not isinstance(value, dict) or not isinstance(value.get('version'), str):
    raise UserError('a request must be a JSON object with a version')
  return value


def application(known: Annotations) -> Starlette:
  """The requests of the page. An image is known by its number alone, so that no request can name a
  file."""
  html = importlib.resources.files(__package__).joinpath('annotate.html').read_bytes()

  def number_of(request: Request) -> int:
    text = request.path_params['number']
    if not (text.isascii() and text.isdecimal() and len(text) < 9 and int(text) < len(known.names)):
      raise HTTPException(404)
    return int(text)

  async def page(request: Request) -> Response:
    return Response(html, 200, HEADERS, 'text/html')

  async def images(request: Request) -> Response:
    stamp = str(known.stamp)  # larger than what JavaScript's numbers hold
    if request.query_params.get('since') == stamp:
      return _json({'stamp': stamp})
    return _json({'stamp': stamp, 'images': known.summary()})

  async def preview(request: Request) -> Response:
    content = await run_in_threadpool(known.preview, number_of(request))
    return Response(content, 200, HEADERS, 'image/jpeg')

  async def state(request: Request) -> Response:
    return _json(await run_in_threadpool(known.state, number_of(request)))

  async def change(request: Request) -> Response:
    number, what, body = number_of(request), request.path_params['what'], await _body(request)
    if what == 'stroke':
      stroke = annotations.stroke(body.get('pixels'), body.get('positive'))
      step = lambda record: annotations.added(record, stroke)
      work = functools.partial(known.change, number, body['version'], step)
    elif what in STEPS:
      work = functools.partial(known.change, number, body['version'], STEPS[what])
    elif what == 'save':
      work = functools.partial(known.save, number, body['version'])
    else:
      raise HTTPException(404)
    try:
      return _json(await run_in_threadpool(work))
    except Stale:
      return _json({'state': await run_in_threadpool(known.state, number)}, 409)

  async def refused(request: Request, error: Exception) -> Response:
    return _json({'error': str(error)}, 400)

  async def failed(request: Request, error: Exception) -> Response:
    traceback.print_exception(error)
    return _json({'error': f'{type(error).__name__}: {error}; the program has printed more'}, 500)

  async def not_found(request: Request, error: Exception) -> Response:
    return _json({'error': 'there is no such page'}, 404)

  routes = [
    Route('/', page),
    Route('/api/images', images),
    Route('/api/images/{number}', state),
    Route('/api/images/{number}/preview', preview),
    Route('/api/images/{number}/{what}', change, methods=['POST']),
  ]
  handlers = {UserError: refused, 404: not_found, Exception: failed}
  return Starlette(routes=routes, exception_handlers=handlers)


def _bound(host: str, port: int) -> socket.socket:
  """A socket that listens there."""
  try:
    family = socket.AF_INET6 if ':' in host else socket.AF_INET
    return socket.create_server((host, port), family=family)
  except (OSError, UnicodeError) as error:
    raise UserError(
      f'cannot serve the page on {host!r}, port {port}: {getattr(error, "strerror", "") or error}; '
      f'annotate.host 127.0.0.1 is this machine, and annotate.port 0 any port that is free'
    ) from error


class Page:
  """A page that is served, by run() or start(), until close(). Its workdir is locked meanwhile.

  Attributes:
    url: its address on this machine.
    port: the number in it.
    folder: where clicks and masks are kept.
    about: what it shows and where it keeps it, in a line.
  """

  def __init__(self, make: Callable[[], Annotations], folder: str, host: str, port: int):
    """make: called when no other process has the folder."""
    self.folder = folder
    self._thread: threading.Thread | None = None
    with contextlib.ExitStack() as stack:
      if not stack.enter_context(files.claimed(folder)):
        raise UserError(
          f'{folder} is open on another page of --mode=annotate; end that one first, or give '
          f'another --workdir'
        )
      known = make()
      sock = stack.enter_context(_bound(host, port))
      self.port = sock.getsockname()[1]
      local = _is_loopback(host)
      name = host if local else socket.gethostname()
      self.url = f'http://{f"[{name}]" if ":" in name else name}:{self.port}/'
      others = '' if local else f'; whoever reaches port {self.port} sees and changes them'
      self.about = f'{len(known.names)} images, clicks and masks in {folder}{others}'
      app: ASGIApp = application(known)
      if 'google.colab' not in sys.modules:  # whose proxy asks under names of its own, for its user
        app = guarded(app, local)
      config = uvicorn.Config(
        app, log_config=None, lifespan='off', loop='asyncio', timeout_graceful_shutdown=1
      )
      self._server, self._socket = uvicorn.Server(config), sock
      self._held = stack.pop_all()

  def __enter__(self) -> 'Page':
    return self

  def __exit__(self, *error: Any) -> None:
    self.close()

  def __repr__(self) -> str:
    return self.url

  def show(self) -> None:
    """Opens the page in a browser, where this machine has a screen."""
    if sys.platform in ('darwin', 'win32') or {'DISPLAY', 'WAYLAND_DISPLAY'} & set(os.environ):
      webbrowser.open(self.url)

  def run(self) -> None:
    """Serves the page until Ctrl-C."""
    with contextlib.suppress(KeyboardInterrupt, asyncio.CancelledError):
      self._server.run(sockets=[self._socket])

  def start(self) -> None:
    """Serves the page beside this program."""
    self._thread = threading.Thread(target=self.run, daemon=True)
    self._thread.start()

  def close(self) -> None:
    """Ends it; what was clicked is on disk."""
    self._server.should_exit = True
    if self._thread:
      self._thread.join()
    self._held.close()
