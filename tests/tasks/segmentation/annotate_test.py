"""The page of --mode=annotate as a server: requests, who may make them, and its beginning and
end."""

import base64
import concurrent.futures
import http.client
import importlib.util
import io
import json
import os
import signal
import sys
import threading
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from gmm_diffusion import specs
from gmm_diffusion.errors import UserError
from gmm_diffusion.tasks.segmentation import modes, networks, use
from helpers import cases, cli, segmenter

THERE = all(importlib.util.find_spec(name) for name in ('starlette', 'uvicorn'))
NAMES = ('a', 'broken', 'größe & <b>', 'link')  # in the order of the page


def make_images(folder, outside):
  for seed, name in enumerate(('a.png', 'größe & <b>.png')):
    segmenter.write_image(os.path.join(folder, name), seed=seed)
  with open(os.path.join(folder, 'broken.png'), 'wb') as file:
    file.write(b'\x89PNG\r\n\x1a\n and no more')
  segmenter.write_image(os.path.join(outside, 'secret.png'), seed=7)
  os.symlink(os.path.join(outside, 'secret.png'), os.path.join(folder, 'link.png'))


class Client:
  """Requests as they are typed, without the tidying of paths that urllib does."""

  def __init__(self, port):
    self.port = port

  def raw(self, method, path, body=None, **headers):
    """(status, headers, content)"""
    connection = http.client.HTTPConnection('127.0.0.1', self.port, timeout=60)
    given = {name.replace('_', '-'): value for name, value in headers.items()}
    try:
      connection.request(method, path, body, given)
      answer = connection.getresponse()
      return answer.status, dict(answer.getheaders()), answer.read()
    finally:
      connection.close()

  def get(self, path):
    status, _, content = self.raw('GET', path)
    return status, json.loads(content)

  def post(self, path, **body):
    kind = {'content_type': 'application/json'}
    status, _, content = self.raw('POST', path, json.dumps(body), **kind)
    return status, json.loads(content)

  def click(self, number, row, column, positive=True):
    """A click of one who has just looked."""
    _, state = self.get(f'/api/images/{number}')
    click = {'version': state['version'], 'pixels': [[row, column]], 'positive': positive}
    return self.post(f'/api/images/{number}/stroke', **click)


@absltest.skipUnless(THERE, "needs the extra 'annotate'")
class ServerTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.images, self.work, outside = (self.create_tempdir().full_path for _ in range(3))
    make_images(self.images, outside)
    self.page = use.annotate(self.images, self.work, segmenter.network())
    self.addCleanup(self.page.close)
    self.client = Client(self.page.port)

  def file(self, name):
    return os.path.join(self.work, 'annotations', name)

  def test_from_the_page_to_a_mask(self):
    status, headers, html = self.client.raw('GET', '/')
    self.assertEqual((status, headers['content-type'][:9]), (200, 'text/html'))
    self.assertIn("default-src 'none'", headers['content-security-policy'])
    self.assertNotIn(b'//', html.replace(b'// ', b''))  # nothing is loaded from elsewhere
    _, found = self.client.get('/api/images')
    self.assertEqual(tuple(image['name'] for image in found['images']), NAMES)
    self.assertEqual(
      self.client.get(f'/api/images?since={found["stamp"]}')[1], {'stamp': found['stamp']}
    )
    _, headers, preview = self.client.raw('GET', '/api/images/2/preview')
    self.assertEqual(Image.open(io.BytesIO(preview)).size, (64, 48))
    status, state = self.client.click(2, 20, 30)
    self.assertEqual((status, state['clicks'], state['empty']), (200, 1, False))
    self.assertStartsWith(state['mask'], 'data:image/png;base64,')
    with open(self.file('größe & <b>.json'), encoding='utf-8') as file:
      kept = json.load(file)
    self.assertEqual(kept['strokes'], [{'pixels': [[20, 30]], 'positive': True}])
    self.assertEqual((kept['image'], kept['height'], kept['width']), ('größe & <b>.png', 48, 64))
    status, state = self.client.post('/api/images/2/save', version=state['version'])
    self.assertEqual((status, state['saved']), (200, True))
    mask = np.asarray(Image.open(self.file('größe & <b>.png')))
    wanted = use.segment(segmenter.image(seed=1), [(20, 30, True)], segmenter.network())
    np.testing.assert_array_equal(mask, 255 * wanted)
    _, found = self.client.get(f'/api/images?since={found["stamp"]}')
    self.assertEqual([image['state'] for image in found['images']], ['', '', 'mask', ''])
    _, state = self.client.post('/api/images/2/reset', version=state['version'])
    self.assertEqual((state['strokes'], state['empty']), ([], True))
    _, state = self.client.post('/api/images/2/undo', version=state['version'])
    self.assertEqual(state['strokes'], kept['strokes'])

  def test_the_mask_that_is_shown_is_that_of_the_clicks(self):
    _, state = self.client.click(0, 20, 30)
    self.client.click(0, 5, 6, False)
    _, state = self.client.get('/api/images/0')
    shown = Image.open(io.BytesIO(base64.b64decode(state['mask'].split(',')[1])))
    wanted = use.segment(segmenter.image(), [(20, 30, True), (5, 6, False)], segmenter.network())
    np.testing.assert_array_equal(np.asarray(shown.convert('RGBA'))[..., 3] > 0, wanted)

  @parameterized.parameters(
    '/../../../../etc/passwd',
    '//etc/passwd',
    '/%2e%2e/%2e%2e/%2e%2e/etc/passwd',
    '/..%2f..%2fetc%2fpasswd',
    '/api/images/../../secret.png',
    '/api/images/..%2f..%2fsecret.png/preview',
    '/api/images/%2fetc%2fpasswd/preview',
    '/api/images/a.png',
    '/api/images/a.png/preview',
    '/api/images/-1',
    '/api/images/4',
    '/api/images/%D9%A3',  # a three, though not one of ASCII
    '/api/images/0%00',
    f'/api/images/{"9" * 5000}',
    '/api/images/0/preview/../../../a.png',
    '/annotations/a.json',
    '/annotate.html',
  )
  def test_no_request_names_a_file(self, path):
    status, _, content = self.client.raw('GET', path)
    self.assertEqual((status, content), (404, b'{"error": "there is no such page"}'))

  def test_images_that_cannot_be_shown(self):
    for path in ('/api/images/1', '/api/images/1/preview'):
      status, found = self.client.get(path)
      self.assertEqual(status, 400)
      self.assertRegex(found['error'], r'cannot read image .*broken\.png.*repair or remove it')
    for path in ('/api/images/3', '/api/images/3/preview'):
      status, found = self.client.get(path)
      self.assertEqual(status, 400)
      self.assertRegex(found['error'], r'link\.png is a link that leads out of')

  @parameterized.parameters(
    (403, {'host': 'evil.example'}),
    (403, {'host': 'evil.example:PORT'}),
    (403, {'host': '127.0.0.1.evil.example:PORT'}),
    (403, {'host': ''}),
    (403, {'origin': 'http://evil.example'}),
    (403, {'origin': 'null'}),
    (403, {'origin': 'http://localhost:1'}),  # another program of this machine
    (200, {'host': 'localhost:9', 'origin': 'http://localhost:9'}),  # through a tunnel
    (200, {'host': '[::1]:PORT'}),
    (200, {}),
  )
  def test_requests_of_other_sites(self, wanted, headers):
    headers = {name: text.replace('PORT', str(self.page.port)) for name, text in headers.items()}
    self.assertEqual(self.client.raw('GET', '/api/images', **headers)[0], wanted)
    self.assertEqual(self.client.raw('GET', '/', **headers)[0], wanted)
    body = json.dumps({'version': ''})
    kind = {'content_type': 'application/json'}
    status = self.client.raw('POST', '/api/images/0/undo', body, **kind, **headers)[0]
    self.assertEqual(status, 409 if wanted == 200 else 403)

  def test_requests_that_are_not_ours(self):
    _, state = self.client.get('/api/images/0')
    version, kind = state['version'], {'content_type': 'application/json'}
    send = lambda body, path='/api/images/0/stroke', **headers: self.client.raw(
      'POST', path, body, **(headers or kind)
    )
    good = {'version': version, 'pixels': [[1, 2]], 'positive': True}
    for change, message in (
      ({'pixels': []}, 'a stroke is 1 to 10000 pixels'),
      ({'pixels': [[1]]}, 'a stroke is 1 to 10000 pixels'),
      ({'pixels': [[1.5, 2]]}, 'of whole numbers'),
      ({'pixels': [[True, 2]]}, 'of whole numbers'),
      ({'pixels': [[10**30, 2]]}, 'of whole numbers'),
      ({'pixels': [[float('nan'), 2]]}, 'of whole numbers'),
      ({'pixels': 'x'}, 'a stroke is'),
      ({'pixels': [[48, 2]]}, 'row 48, column 2 is outside the image; valid: rows 0..47'),
      ({'pixels': [[-1, 2]]}, 'row -1, column 2 is outside the image'),
      ({'positive': 1}, 'positive, which is true or false'),
      ({'version': 3}, 'a JSON object with a version'),
    ):
      status, _, content = send(json.dumps(good | change))
      self.assertEqual(status, 400, change)
      self.assertIn(message, json.loads(content)['error'])
    for body, message in (
      ('', 'must be JSON'),
      ('[' * 100000, 'must be JSON'),
      ('[]', 'a JSON object'),
      ('x' * (1 << 21), 'at most 1048576 bytes'),
    ):
      status, _, content = send(body)
      self.assertEqual(status, 400)
      self.assertIn(message, json.loads(content)['error'])
    status, _, content = send(json.dumps(good), content_type='text/plain')  # a form of another site
    self.assertEqual((status, json.loads(content)['error'][:9]), (400, 'a request'))
    self.assertEqual(send(json.dumps(good), '/api/images/0/remove')[0], 404)
    self.assertEqual(self.client.raw('GET', '/api/images/0/undo')[0], 405)
    self.assertEqual(self.client.get('/api/images/0')[1], state)

  def test_two_pages_at_once(self):
    other = Client(self.page.port)
    _, seen = other.get('/api/images/0')
    _, mine = self.client.click(0, 20, 30)
    click = {'pixels': [[5, 6]], 'positive': False}
    status, found = other.post('/api/images/0/stroke', version=seen['version'], **click)
    self.assertEqual((status, found['state']), (409, mine))  # it is shown what there is
    status, found = other.post('/api/images/0/stroke', version=mine['version'], **click)
    self.assertEqual((status, found['clicks']), (200, 2))
    self.assertEqual(self.client.get('/api/images/2')[1]['clicks'], 0)

    def until_taken(column):
      client = Client(self.page.port)
      while client.click(column % 2 * 2, 40, column)[0] == 409:
        pass

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
      list(pool.map(until_taken, range(12)))
    for number, known in ((0, 2), (2, 0)):
      _, found = self.client.get(f'/api/images/{number}')
      columns = [one['pixels'][0][1] for one in found['strokes'][known:]]
      self.assertCountEqual(columns, range(number // 2, 12, 2))

  def test_a_workdir_that_cannot_be_written(self):
    with open(self.file('').rstrip('/'), 'wb'):  # in the place of the folder
      pass
    status, found = self.client.click(0, 1, 2)
    self.assertEqual(status, 400)
    self.assertRegex(found['error'], 'cannot write .*a.json: File exists; free space or remove')
    self.assertEqual(self.client.get('/api/images/0')[1]['clicks'], 0)

  def test_a_folder_that_may_only_be_read(self):
    _, known = self.client.click(0, 20, 30)
    with cases.read_only(self.file('')):
      status, found = self.client.click(0, 1, 2)
      self.assertEqual(status, 400)
      self.assertRegex(found['error'], r'/a\.json: Permission denied; make its folder writable')
      status, found = self.client.post('/api/images/0/save', version=known['version'])
      self.assertEqual(status, 400)
      self.assertRegex(found['error'], r'cannot write .*/a\.png: Permission denied; make')
    self.assertEqual(os.listdir(self.file('')), ['a.json'])
    self.assertEqual(self.client.get('/api/images/0')[1], known)  # as if nothing had been asked
    status, found = self.client.click(0, 1, 2)
    self.assertEqual((status, found['clicks']), (200, 2))

  def test_a_folder_and_a_port_are_for_one_page(self):
    network = segmenter.network()
    with self.assertRaisesRegex(
      UserError, 'annotations is open on another page of --mode=annotate'
    ):
      use.annotate(self.images, self.work, network)
    other = self.create_tempdir().full_path
    with self.assertRaisesRegex(UserError, "cannot serve the page on '127.0.0.1', port .*free"):
      use.annotate(self.images, other, network, port=self.page.port)
    with self.assertRaisesRegex(UserError, "cannot serve the page on '1.2.3.4', port 0"):
      use.annotate(self.images, other, network, host='1.2.3.4')
    self.page.close()
    again = use.annotate(self.images, self.work, network, port=self.page.port)
    self.assertEqual(Client(again.port).get('/api/images')[0], 200)
    again.close()

  def test_in_colab(self):
    other = self.create_tempdir().full_path
    with mock.patch.dict(sys.modules, {'google.colab': mock.Mock()}):
      page = use.annotate(self.images, other, segmenter.network())
    proxy = {'host': 'x-colab.googleusercontent.com', 'origin': 'https://colab.example'}
    self.assertEqual(Client(page.port).raw('GET', '/api/images', **proxy)[0], 200)
    page.close()

  def test_for_other_machines(self):
    other = self.create_tempdir().full_path
    page = use.annotate(self.images, other, segmenter.network(), host='0.0.0.0')
    self.assertIn(f'whoever reaches port {page.port} sees and changes them', page.about)
    self.assertEqual(Client(page.port).raw('GET', '/', host='box:1')[0], 200)
    headers = {'host': 'box:1', 'origin': 'http://evil.example'}
    self.assertEqual(Client(page.port).raw('GET', '/', **headers)[0], 403)
    page.close()


class ModeTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.images, self.work = self.create_tempdir().full_path, self.create_tempdir().full_path
    segmenter.write_image(os.path.join(self.images, 'a.png'))

  def spec(self, **own):
    data = {'images': self.images}
    return specs.from_config({'task': 'segmentation', 'data': data, 'annotate': own})

  @absltest.skipUnless(THERE, "needs the extra 'annotate'")
  @parameterized.parameters(True, False)
  def test_until_ctrl_c(self, shown):
    from gmm_diffusion.tasks.segmentation import server

    opened, real = [], server.Page.run

    def stop(port):
      Client(port).raw('GET', '/')  # it runs
      os.kill(os.getpid(), signal.SIGINT)

    def run(page):
      threading.Thread(target=stop, args=(page.port,)).start()
      real(page)

    with (
      mock.patch.object(networks, 'of', lambda spec, workdir: segmenter.network()),
      mock.patch.object(server.Page, 'run', run),
      mock.patch.object(server.Page, 'show', lambda page: opened.append(page.url)),
      mock.patch('builtins.print') as printed,
    ):
      modes.run('annotate', self.spec(open=shown), self.work, 'command')
    lines = [call.args[0] for call in printed.call_args_list]
    self.assertLen(lines, 2)
    folder = os.path.join(self.work, 'annotations')
    self.assertRegex(lines[0], f'^1 images, clicks and masks in {folder}\nopen http://127.0.0.1:')
    self.assertEqual(lines[1], f'\nall clicks are in {folder}; the same command goes on from there')
    self.assertLen(opened, int(shown))

  def test_without_the_extra(self):
    package = sys.modules['gmm_diffusion.tasks.segmentation']
    with (
      mock.patch.dict(sys.modules, {'starlette.applications': None, 'uvicorn': None}),
      mock.patch.dict(sys.modules),
      mock.patch.dict(vars(package)),
    ):
      sys.modules.pop(f'{package.__name__}.server', None)
      vars(package).pop('server', None)
      with self.assertRaisesRegex(
        UserError, r"annotating needs .*; install the extra: pip install -e '\.\[annotate\]'$"
      ):
        use.annotate(self.images, self.work, segmenter.network())

  def test_what_is_missing(self):
    with self.assertRaisesRegex(UserError, 'needs data.images: give a folder of images'):
      modes.run('annotate', specs.from_config({'task': 'segmentation'}), self.work, 'command')
    with self.assertRaisesRegex(UserError, 'no checkpoint in .*; train one first'):
      modes.run('annotate', self.spec(), self.work, 'command')

  @parameterized.parameters(
    (
      'train',
      'segmentation.encoder_rate=.5',
      "encoder_rate' has no effect: segmentation.encoder 's",
    ),
    ('train', 'segmentation.weights=x', "weights' has no effect: --mode=train trains a network of"),
    ('annotate', 'data.masks=x', "'data.masks' has no effect: --mode=annotate reads data.images"),
    ('train', 'annotate.port=3', "'annotate.port' has no effect: --mode=train does not annotate"),
  )
  def test_keys_without_effect(self, mode, key, message):
    code, _, error = cli.here('segmentation.py', mode, self.work, f'--config.{key}')
    self.assertEqual(code, 1)
    self.assertIn(message, error)


if __name__ == '__main__':
  absltest.main()
