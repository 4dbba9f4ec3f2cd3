"""The page of --mode=annotate in a browser: what a hand does, and what it then sees."""

import importlib.util
import json
import os
import shutil
import time

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from gmm_diffusion.tasks.segmentation import use
from helpers import cases, segmenter

BROWSER = next(
  filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None
)
MISSING = [
  name for name in ('starlette', 'uvicorn', 'playwright') if not importlib.util.find_spec(name)
]
WHY = f'needs {", ".join([*MISSING, *([] if BROWSER else ["chromium"])])}'
SIZE = (48, 64)
# the image and its mask are drawn, and at a size that the next two frames do not change
READY = """mask && picture.complete && !frame.hidden && await (async () => {
  const size = () => JSON.stringify(canvas.getBoundingClientRect()), before = size();
  for (let i = 0; i < 2; i++) await new Promise(requestAnimationFrame);
  return !queues.has(at) && mask && !frame.hidden && size() === before;
})()"""


@absltest.skipIf(MISSING or not BROWSER, WHY)
class BrowserTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    from playwright.sync_api import sync_playwright

    cls.playwright = cls.enterClassContext(sync_playwright())
    cls.browser = cls.playwright.chromium.launch(executable_path=BROWSER, args=['--no-sandbox'])
    cls.addClassCleanup(cls.browser.close)

  def setUp(self):
    super().setUp()
    self.images, self.work = self.create_tempdir().full_path, self.create_tempdir().full_path
    for seed, name in enumerate('abc'):
      segmenter.write_image(os.path.join(self.images, f'{name}.png'), seed=seed)
    self.server = use.annotate(self.images, self.work, segmenter.network())
    self.addCleanup(lambda: self.server.close())

  def tab(self, **how):
    """A tab of a browser of its own, on the page."""
    context = self.browser.new_context(**{'viewport': {'width': 900, 'height': 600}, **how})
    self.addCleanup(context.close)
    tab, errors = context.new_page(), []
    tab.on('pageerror', lambda error: errors.append(error))
    self.addCleanup(lambda: self.assertEmpty(errors))
    tab.goto(self.server.url)
    self.ready(tab)
    return tab

  def until(self, tab, what):
    """Waits until an expression of the page holds, and no answer is waited for."""
    end = time.monotonic() + 20
    while not tab.evaluate(f'(async () => !queues.has(at) && Boolean({what}))()'):
      self.assertLess(time.monotonic(), end, f'{what}: {tab.evaluate("message.textContent")}')
      tab.wait_for_timeout(10)

  def ready(self, tab):
    """Waits until the page shows the image at hand, and neither draws nor moves it."""
    self.until(tab, READY)

  def place(self, tab, row, column, size=SIZE):
    """Where the middle of a pixel of the image is on the screen."""
    self.ready(tab)
    box = tab.locator('canvas').bounding_box()
    return (
      box['x'] + (column + 0.5) / size[1] * box['width'],
      box['y'] + (row + 0.5) / size[0] * box['height'],
    )

  def click(self, tab, row, column, button='left'):
    count = tab.evaluate('states.get(at).strokes.length')
    tab.mouse.click(*self.place(tab, row, column), button=button)
    self.until(tab, f'states.get(at).strokes.length === {count + 1}')

  def key(self, tab, key, what='true'):
    tab.keyboard.press(key)
    self.until(tab, what)

  def kept(self, name='a'):
    with open(os.path.join(self.work, 'annotations', f'{name}.json'), encoding='utf-8') as file:
      return [(one['pixels'], one['positive']) for one in json.load(file)['strokes']]

  def shown(self, tab):
    """How much of the mask is drawn: pixels of the canvas that are not transparent."""
    self.ready(tab)
    return tab.evaluate(
      'canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height)'
      '.data.filter((value, i) => i % 4 === 3 && value).length'
    )

  def expected(self, strokes, seed=0):
    return segmenter.network().session(segmenter.image(seed=seed)).replay(strokes)

  def test_from_a_click_to_a_mask(self):
    tab = self.tab()
    self.assertEqual(tab.inner_text('#hint'), 'Click the object, or draw a line on it')
    self.assertTrue(tab.is_disabled('#save'))
    self.assertEqual(self.shown(tab), 0)
    self.click(tab, 20, 30)
    first = self.shown(tab)
    self.assertGreater(first, 0)
    self.click(tab, 5, 6, 'right')
    self.assertNotEqual(self.shown(tab), first)
    self.assertEqual(self.kept(), [([[20, 30]], True), ([[5, 6]], False)])
    tab.click('#undo')
    self.until(tab, 'states.get(at).strokes.length === 1')
    self.assertEqual(self.shown(tab), first)
    tab.click('#reset')
    self.until(tab, '!states.get(at).strokes.length')
    self.assertEqual((self.shown(tab), self.kept()), (0, []))
    tab.click('#undo')  # of the reset
    self.until(tab, 'states.get(at).strokes.length === 1')
    tab.click('#save')
    self.until(tab, 'states.get(at).saved')
    mask = np.asarray(Image.open(os.path.join(self.work, 'annotations', 'a.png')))
    np.testing.assert_array_equal(mask, 255 * self.expected([([(20, 30)], True)]))
    self.until(tab, 'images[0].state === "mask"')
    self.assertEqual(tab.inner_text('#progress'), '1 of 3 masks')
    self.assertEqual(tab.get_attribute('#list button', 'title'), 'a: mask saved')

  def test_scribbles(self):
    tab = self.tab()
    for button, row in (('left', 20), ('right', 40)):
      tab.mouse.move(*self.place(tab, row, 10))
      tab.mouse.down(button=button)
      tab.mouse.move(*self.place(tab, row, 50), steps=20)
      tab.mouse.up(button=button)
    self.until(tab, 'states.get(at).strokes.length === 2')
    for (pixels, positive), row, object_ in zip(self.kept(), (20, 40), (True, False)):
      self.assertEqual(positive, object_)
      self.assertBetween(len(pixels), 4, 8)
      self.assertEqual({pixel[0] for pixel in pixels}, {row})
      self.assertEqual((pixels[0][1], pixels[-1][1]), (10, 50))

  def test_by_keys(self):
    tab = self.tab()
    self.click(tab, 20, 30)
    shown = self.shown(tab)
    tab.keyboard.down('v')
    self.assertEqual(self.shown(tab), 0)  # the image alone
    tab.keyboard.up('v')
    self.assertEqual(self.shown(tab), shown)
    self.key(tab, 'x')
    self.assertEqual(tab.get_attribute('#background', 'aria-pressed'), 'true')
    self.click(tab, 9, 9)
    self.assertEqual(self.kept()[1], ([[9, 9]], False))
    self.key(tab, 'z', 'states.get(at).strokes.length === 1')
    self.click(tab, 9, 9)
    self.key(tab, 'Control+z', 'states.get(at).strokes.length === 1')
    for _ in range(9):
      self.key(tab, 'q')
    self.assertEqual(tab.input_value('#opacity'), '0')
    self.key(tab, 'w')
    self.assertEqual(tab.input_value('#opacity'), '10')
    self.key(tab, 'e', 'at === 1 && states.has(1)')  # save and next
    self.assertTrue(os.path.exists(os.path.join(self.work, 'annotations', 'a.png')))
    self.key(tab, 'ArrowRight', 'at === 2 && states.has(2)')
    self.key(tab, 'd', 'at === 2')  # there is no further one
    self.key(tab, 'a', 'at === 1')
    self.key(tab, 's')  # nothing to save: nothing happens
    self.assertFalse(os.path.exists(os.path.join(self.work, 'annotations', 'b.png')))
    self.click(tab, 20, 30)
    self.key(tab, 'r', '!states.get(at).strokes.length')

  @parameterized.parameters(1.0, 2.5)
  def test_a_click_lands_on_its_pixel(self, factor):
    tab = self.tab(device_scale_factor=factor, viewport={'width': 777, 'height': 541})
    wanted = [(0, 0), (47, 63), (13, 37)]
    for row, column in wanted:
      self.click(tab, row, column)
    for _ in range(3):
      self.key(tab, '+')
    self.assertGreater(tab.evaluate('stage.scrollWidth'), tab.evaluate('stage.clientWidth'))
    self.click(tab, 25, 31)
    tab.evaluate('document.body.style.zoom = 0.8')  # as of the browser
    tab.evaluate('layout()')
    self.click(tab, 24, 33)
    tab.set_viewport_size({'width': 390, 'height': 844})
    self.key(tab, '0', 'innerWidth === 390')
    self.click(tab, 30, 40)
    found = [tuple(pixels[0]) for pixels, _ in self.kept()]
    self.assertEqual(found, [*wanted, (25, 31), (24, 33), (30, 40)])

  def test_a_second_start_goes_on(self):
    tab = self.tab()
    self.click(tab, 20, 30)
    shown = self.shown(tab)
    tab.reload()
    self.assertEqual(self.shown(tab), shown)
    port = self.server.port
    self.server.close()
    tab.mouse.click(*self.place(tab, 9, 9))
    self.until(tab, 'lost')
    self.assertIn('does not answer. Every click so far is on disk', tab.inner_text('#message'))
    self.server = use.annotate(self.images, self.work, segmenter.network(), port=port)
    self.until(tab, '!lost && message.hidden')  # found again without a reload
    self.click(tab, 5, 6, 'right')
    self.assertEqual(self.kept(), [([[20, 30]], True), ([[5, 6]], False)])

  def test_two_browsers_at_once(self):
    one, other = self.tab(), self.tab()
    self.click(one, 20, 30)
    self.until(other, 'states.get(0).strokes.length === 1')  # it shows what the other has done
    self.key(other, 'd', 'at === 1 && states.has(1)')
    self.click(other, 40, 40)
    self.click(one, 5, 6, 'right')
    self.assertEqual(self.kept('a'), [([[20, 30]], True), ([[5, 6]], False)])
    self.assertEqual(self.kept('b'), [([[40, 40]], True)])
    # a click that was made on a mask which is no longer there is not taken
    self.key(other, 'a', 'at === 0 && states.get(0).strokes.length === 2')
    old = lambda route: {**route.request.post_data_json, 'version': 'of before'}
    other.route('**/stroke', lambda route: route.continue_(post_data=json.dumps(old(route))))
    other.mouse.click(*self.place(other, 1, 1))
    self.until(other, '!message.hidden')
    self.assertIn('was changed on another page', other.inner_text('#message'))
    self.assertLen(self.kept('a'), 2)

  def test_what_goes_wrong_is_said_on_the_page(self):
    with open(os.path.join(self.images, 'b.png'), 'wb') as file:
      file.write(b'\x89PNG')
    tab = self.tab()
    self.click(tab, 20, 30)
    self.key(tab, 'd', 'at === 1 && !message.hidden')
    self.assertRegex(tab.inner_text('#message'), 'cannot read image .*b.png.*repair or remove it')
    self.key(tab, 'a', 'at === 0 && message.hidden')
    folder = os.path.join(self.work, 'annotations')
    os.rename(folder, folder + '2')
    with open(folder, 'wb'):  # in the place of the folder
      pass
    tab.mouse.click(*self.place(tab, 9, 9))
    self.until(tab, '!message.hidden')
    self.assertRegex(tab.inner_text('#message'), 'cannot write .*a.json: .*; free space')
    self.assertEqual(tab.evaluate('states.get(0).strokes.length'), 1)

  def test_a_folder_that_may_only_be_read_is_said_on_the_page(self):
    tab = self.tab()
    self.click(tab, 20, 30)
    shown = self.shown(tab)
    with cases.read_only(os.path.join(self.work, 'annotations')):
      tab.mouse.click(*self.place(tab, 9, 9))
      self.until(tab, '!message.hidden')
      self.assertRegex(
        tab.inner_text('#message'), r'cannot write .*a\.json: .*; make its folder writable'
      )
      self.assertEqual(self.shown(tab), shown)  # the click that is not on disk is not shown
    self.click(tab, 40, 6, 'right')
    self.until(tab, 'message.hidden')
    self.assertEqual(self.kept(), [([[20, 30]], True), ([[40, 6]], False)])

  def test_a_photograph_of_40_megapixels(self):
    self.server.close()
    size, path = (5500, 7300), os.path.join(self.images, '0.jpg')  # the first of the list
    slope = np.linspace(0, 255, size[1]).astype(np.uint8)
    Image.fromarray(np.broadcast_to(slope, size)).save(path, quality=60)
    self.server = use.annotate(self.images, self.work, segmenter.network())
    tab = self.tab()
    self.assertEqual(
      tab.evaluate('[states.get(0).height, states.get(0).width, picture.naturalWidth]'),
      [*size, 1600],
    )
    self.assertEqual(self.shown(tab), 0)
    tab.mouse.click(*self.place(tab, 2000, 3000, size))
    self.until(tab, 'states.get(at).strokes.length === 1')
    self.assertGreater(self.shown(tab), 0)
    tab.click('#save')
    self.until(tab, 'states.get(at).saved')
    ((pixels, positive),) = self.kept('0')
    np.testing.assert_allclose(pixels, [[2000, 3000]], atol=8)  # a pixel of the screen is 9 here
    mask = np.asarray(Image.open(os.path.join(self.work, 'annotations', '0.png')))
    wanted = use.segment(path, [(*pixels[0], positive)], segmenter.network())
    self.assertBetween(wanted.mean(), 0.01, 0.99)
    np.testing.assert_array_equal(mask, 255 * wanted)

  def test_by_touch(self):
    tab = self.tab(has_touch=True, is_mobile=True, viewport={'width': 390, 'height': 844})
    self.assertEqual(tab.inner_text('#hint'), 'Tap the object, or draw a line on it')
    tab.touchscreen.tap(*self.place(tab, 20, 30))
    self.until(tab, 'states.get(at).strokes.length === 1')
    tab.tap('#background')
    tab.touchscreen.tap(*self.place(tab, 5, 6))
    self.until(tab, 'states.get(at).strokes.length === 2')
    self.assertEqual(self.kept(), [([[20, 30]], True), ([[5, 6]], False)])


if __name__ == '__main__':
  absltest.main()
