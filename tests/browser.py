"""A real browser, driven over a pipe with the standard library alone: what a page does when
somebody opens it.
"""

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

#: Without these Chromium looks for hosts of its own, and as root it needs the second.
FLAGS = (
    *(
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-sync",
    ),
    *(
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
    ),
)


def chromium():
    """Where Debian's, or anybody's, Chromium is."""
    return next(
        (
            path
            for name in ("chromium", "chromium-browser", "google-chrome")
            if (path := shutil.which(name))
        ),
        None,
    )


class Seen(NamedTuple):
    """What happened while a page was opened, and what stands in it then."""

    dialogs: list
    requests: list
    complaints: list
    found: dict


#: What a page is asked once it is there. Everything that could run or fetch is counted by what the
#: parser made of it.
QUESTIONS = """(() => ({
  text: document.body.innerText,
  title: document.title,
  active: document.querySelectorAll(
    'script, iframe, object, embed, base, form, link:not([href="data:,"]), meta[http-equiv=refresh]').length,
  handlers: [...document.querySelectorAll('*')].filter(e => [...e.attributes].some(a => /^on/i.test(a.name))).length,
  schemes: [...new Set([...document.querySelectorAll('[href], [src]')].map(
    e => (e.getAttribute('href') ?? e.getAttribute('src')).match(/^[a-z]+:|^#/i)?.[0] ?? 'relative'))].sort(),
  pictures: [...document.images].map(i => i.naturalWidth),
  wordless: [...document.images].filter(i => !i.alt).length,
  overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  headings: [...document.querySelectorAll('h1, h2, h3, h4')].map(h => Number(h.tagName[1])),
}))()"""


class Browser:
    """A Chromium with an empty profile; use it as a context."""

    def __init__(self):
        assert chromium(), "these tests need a Chromium: apt-get install chromium"
        self.profile = tempfile.mkdtemp(prefix="chromium")
        (theirs_in, self.to), (self.out, theirs_out) = os.pipe(), os.pipe()
        # The protocol's pipe is at descriptors 3 and 4, which a shell puts there.
        command = f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}'
        options = [
            *FLAGS,
            "--remote-debugging-pipe",
            f"--user-data-dir={self.profile}",
            "about:blank",
        ]
        self.process = subprocess.Popen(
            ["bash", "-c", command, chromium(), *options],
            pass_fds=(theirs_in, theirs_out),
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self.number, self.buffer, self.session, self.events = 0, b"", None, []
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
        """Send a command and wait for its answer; what else is said meanwhile is kept in
        ``events``.
        """
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        message |= {"sessionId": self.session} if self.session else {}
        content = json.dumps(message).encode() + b"\0"
        while content:
            content = content[os.write(self.to, content) :]
        while True:
            said = self._read()
            if said.get("id") == self.number:
                if "error" in said:
                    raise RuntimeError(f"{method}: {said['error']}")
                return said["result"]

    def _read(self):
        while b"\0" not in self.buffer:
            more = os.read(self.out, 1 << 16)
            if not more:
                raise RuntimeError("the browser is gone")
            self.buffer += more
        line, _, self.buffer = self.buffer.partition(b"\0")
        said = json.loads(line)
        if "method" in said:
            self.events.append(said)
            if said["method"] == "Page.javascriptDialogOpening":  # which would hold everything up
                self._accept()
        return said

    def _accept(self):
        message = {
            "id": 0,
            "method": "Page.handleJavaScriptDialog",
            "params": {"accept": True},
            "sessionId": self.session,
        }
        os.write(self.to, json.dumps(message).encode() + b"\0")

    def look(self, page, width=1280, dark=False):
        """Open a file as wide as that and tell what was seen."""
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=800,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
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
        found = self.ask("Runtime.evaluate", expression=QUESTIONS, returnByValue=True)["result"][
            "value"
        ]
        said = {
            name: [e["params"] for e in self.events if e["method"] == name] for name in self._told()
        }
        requests = [p["request"]["url"] for p in said["Network.requestWillBeSent"]]
        return Seen(
            dialogs=said["Page.javascriptDialogOpening"],
            requests=[url for url in requests if url != address and not url.startswith("data:")],
            complaints=[
                *said["Runtime.consoleAPICalled"],
                *said["Runtime.exceptionThrown"],
                *said["Log.entryAdded"],
            ],
            found=found,
        )

    @staticmethod
    def _told():
        return (
            *(
                "Network.requestWillBeSent",
                "Page.javascriptDialogOpening",
                "Runtime.consoleAPICalled",
            ),
            *("Runtime.exceptionThrown", "Log.entryAdded"),
        )

    def picture(self, whole=True):
        """The page that was looked at last, as the content of a PNG."""
        return base64.b64decode(
            self.ask("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        )
