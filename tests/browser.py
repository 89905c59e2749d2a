"""A headless Chromium, driven over a pipe with the standard library alone."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

#: Without these Chromium contacts hosts of its own; as root it needs ``--no-sandbox``.
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
)

#: Events that a visit of a page records.
DIALOG = "Page.javascriptDialogOpening"
REQUEST = "Network.requestWillBeSent"
COMPLAINTS = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")


def chromium():
    """Path of an installed Chromium, or ``None``."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next(filter(None, map(shutil.which, names)), None)


class Visit(NamedTuple):
    """Events of loading a page, and measurements of its document.

    Args:
        dialogs: Dialogs that it opened.
        requests: URLs that it requested, but for itself and ``data:``.
        complaints: Messages of the console, exceptions and log entries.
        found: The values of `MEASUREMENTS`.
    """

    dialogs: list
    requests: list
    complaints: list
    content: dict


#: Evaluated in a loaded page; counts all that could run or fetch in the parsed document.
MEASUREMENTS = """(() => ({
  text: document.body.innerText,
  title: document.title,
  active: document.querySelectorAll(
    'script, iframe, object, embed, base, form, link:not([href="data:,"]), ' +
    'meta[http-equiv=refresh]').length,
  handlers: [...document.querySelectorAll('*')].filter(
    e => [...e.attributes].some(a => /^on/i.test(a.name))).length,
  schemes: [...new Set([...document.querySelectorAll('[href], [src]')].map(
    e => (e.getAttribute('href') ?? e.getAttribute('src')).match(/^[a-z]+:|^#/i)?.[0] ??
      'relative'))].sort(),
  pictures: [...document.images].map(i => i.naturalWidth),
  wordless: [...document.images].filter(i => !i.alt).length,
  overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  headings: [...document.querySelectorAll('h1, h2, h3, h4')].map(h => Number(h.tagName[1])),
}))()"""


class Browser:
    """A Chromium with an empty profile, as a context manager."""

    def __init__(self):
        assert chromium(), "these tests need a Chromium: apt-get install chromium"
        self.profile = tempfile.mkdtemp(prefix="chromium")
        theirs_in, self.to = os.pipe()
        self.out, theirs_out = os.pipe()
        # The protocol's pipe is at descriptors 3 and 4, which a shell puts there.
        command = f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}'
        profile = f"--user-data-dir={self.profile}"
        options = [*FLAGS, "--remote-debugging-pipe", profile, "about:blank"]
        self.process = subprocess.Popen(
            ["bash", "-c", command, chromium(), *options],
            pass_fds=(theirs_in, theirs_out),
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self.number = 0
        self.buffer = b""
        self.session = None
        self.events = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.ask(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(20)
        os.close(self.to)
        os.close(self.out)
        shutil.rmtree(self.profile, ignore_errors=True)

    def ask(self, method, **parameters):
        """Send a command and return its result; events that arrive meanwhile go to ``events``."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        message |= {"sessionId": self.session} if self.session else {}
        content = json.dumps(message).encode() + b"\0"
        while content:
            content = content[os.write(self.to, content) :]
        while True:
            reply = self._read()
            if reply.get("id") == self.number:
                if "error" in reply:
                    raise RuntimeError(f"{method}: {reply['error']}")
                return reply["result"]

    def _read(self):
        while b"\0" not in self.buffer:
            more = os.read(self.out, 1 << 16)
            if not more:
                raise RuntimeError("the browser is gone")
            self.buffer += more
        line, _, self.buffer = self.buffer.partition(b"\0")
        message = json.loads(line)
        if "method" in message:
            self.events.append(message)
            if message["method"] == DIALOG:
                self._accept()  # an open dialog blocks the page
        return message

    def _accept(self):
        message = {
            "id": 0,
            "method": "Page.handleJavaScriptDialog",
            "params": {"accept": True},
            "sessionId": self.session,
        }
        os.write(self.to, json.dumps(message).encode() + b"\0")

    def resize(self, width):
        """Show pages in a window of a width in pixels, a phone's below 600."""
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
        self.ask("Emulation.setDeviceMetricsOverride", **size)

    def look(self, page, width=1280, dark=False):
        """Load a file in a window of a width in pixels, and return the `Visit`."""
        self.resize(width)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        address = Path(page).resolve().as_uri()
        self.ask("Page.navigate", url=address)
        deadline = time.monotonic() + 60
        while not any(e["method"] == "Page.loadEventFired" for e in self.events):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{page} was not loaded")
            self._read()
        evaluated = self.ask("Runtime.evaluate", expression=MEASUREMENTS, returnByValue=True)
        requests = [parameters["request"]["url"] for parameters in self._events(REQUEST)]
        return Visit(
            dialogs=self._events(DIALOG),
            requests=[url for url in requests if url != address and not url.startswith("data:")],
            complaints=[parameters for name in COMPLAINTS for parameters in self._events(name)],
            content=evaluated["result"]["value"],
        )

    def _events(self, name):
        return [event["params"] for event in self.events if event["method"] == name]

    def screenshot(self, whole=True):
        """The loaded page as the content of a PNG; the visible part alone unless ``whole``."""
        reply = self.ask("Page.captureScreenshot", captureBeyondViewport=whole)
        return base64.b64decode(reply["data"])
