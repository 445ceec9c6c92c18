"""A headless Chromium over its DevTools pipe: no driver, no package, no port."""

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time

FLAGS = (
  "--headless",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--disable-dev-shm-usage",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--disable-extensions",
  "--force-color-profile=srgb",
  "--hide-scrollbars",
  "--remote-debugging-pipe",
)
NAMES = ("chromium", "chromium-browser", "google-chrome")
# The browser reads commands on descriptor 3 and answers on 4.
_LAUNCH = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
os.dup2(ends[0], 3), os.dup2(ends[1], 4)
os.execvp(sys.argv[3], sys.argv[3:])
"""


def path():
  """Chromium's path, or None."""
  return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
  """One page. A context manager; `events` holds all that the page reported."""

  def __init__(self, profile, *, limit_s=60.0):
    self._limit_s = limit_s
    self._last_id = 0
    self._buffer = b""
    self._session = None
    self.events = []
    read_end, self._out = os.pipe()
    self._in, write_end = os.pipe()
    command = [path(), *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    self._process = subprocess.Popen(
      [sys.executable, "-c", _LAUNCH, str(read_end), str(write_end), *command],
      pass_fds=(read_end, write_end),
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    os.close(read_end)
    os.close(write_end)
    targets = self.call("Target.getTargets")["targetInfos"]
    page = next(t["targetId"] for t in targets if t["type"] == "page")
    attached = self.call("Target.attachToTarget", targetId=page, flatten=True)
    self._session = attached["sessionId"]
    for domain in ("Page", "Runtime", "Network", "Log"):
      self.call(f"{domain}.enable")

  def __enter__(self):
    return self

  def __exit__(self, *unused):
    self._process.terminate()
    try:
      self._process.wait(10)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()
    os.close(self._in)
    os.close(self._out)

  def call(self, method, **params):
    wanted = self._send(method, **params)
    while True:
      answer = self._next()
      if answer.get("id") != wanted:
        self._note(answer)
      elif "error" in answer:
        raise RuntimeError(f"{method}: {answer['error']}")
      else:
        return answer["result"]

  def open(self, url, *, width, dark=False):
    """Loads a page and waits for its load event."""
    self.events.clear()
    self.resize(width)
    value = "dark" if dark else "light"
    self.call(
      "Emulation.setEmulatedMedia",
      features=[{"name": "prefers-color-scheme", "value": value}],
    )
    self.call("Page.navigate", url=url)
    while not self.named("Page.loadEventFired"):
      self._note(self._next())
    self.run("document.body.offsetHeight")

  def resize(self, width, height=900):
    self.call(
      "Emulation.setDeviceMetricsOverride",
      width=width,
      height=height,
      deviceScaleFactor=1,
      mobile=False,
    )

  def run(self, expression):
    """The value of a JavaScript expression."""
    result = self.call(
      "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
    )
    if "exceptionDetails" in result:
      raise RuntimeError(result["exceptionDetails"])
    return result["result"].get("value")

  def named(self, method):
    return [e["params"] for e in self.events if e.get("method") == method]

  def screenshot(self, path):
    """The whole page, however long, as PNG."""
    size = self.call("Page.getLayoutMetrics")["cssContentSize"]
    clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"]}
    shot = self.call(
      "Page.captureScreenshot", captureBeyondViewport=True, clip={**clip, "scale": 1}
    )
    path.write_bytes(base64.b64decode(shot["data"]))

  def _send(self, method, **params):
    self._last_id += 1
    message = {"id": self._last_id, "method": method, "params": params}
    if self._session is not None:
      message["sessionId"] = self._session
    os.write(self._out, json.dumps(message).encode() + b"\0")
    return self._last_id

  def _note(self, message):
    self.events.append(message)
    # An open dialog would hold up every later call.
    if message.get("method") == "Page.javascriptDialogOpening":
      self._send("Page.handleJavaScriptDialog", accept=False)

  def _next(self):
    end = time.monotonic() + self._limit_s
    while b"\0" not in self._buffer:
      left = end - time.monotonic()
      if left <= 0 or not select.select([self._in], [], [], left)[0]:
        raise TimeoutError("the browser does not answer")
      data = os.read(self._in, 1 << 16)
      if not data:
        raise RuntimeError("the browser has ended")
      self._buffer += data
    message, self._buffer = self._buffer.split(b"\0", 1)
    return json.loads(message)
