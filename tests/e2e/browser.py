"""Headless Chromium, driven through chromedriver's own HTTP protocol (W3C WebDriver)."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from .running import ANSWER_SECONDS, until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CHROMEDRIVER = shutil.which("chromedriver")

_FLAGS = (
    "--headless",
    "--no-sandbox",  # which needs rights that a container's root does not have
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--no-proxy-server",
    "--hide-scrollbars",
)
needs_browser = [
    pytest.mark.integration,
    pytest.mark.skipif(
        not (CHROMIUM and CHROMEDRIVER),
        reason="chromium and chromedriver are not installed (apt-get install chromium-driver)",
    ),
]
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


class Browser:
    """One window of a browser with a profile of its own in `folder`."""

    def __init__(self, folder: Path, *, width: int = 1280, height: int = 800, dark: bool = False) -> None:
        self._log_file = folder / "chromedriver.log"
        with self._log_file.open("w") as log:
            self._process = subprocess.Popen([str(CHROMEDRIVER), "--port=0"], stdout=log, stderr=subprocess.STDOUT)
        self._http = httpx.Client(timeout=ANSWER_SECONDS, trust_env=False)
        try:
            port = until(self._port, "chromedriver listens")
            flags = [*_FLAGS, f"--user-data-dir={folder / 'profile'}", f"--window-size={width},{height}"]
            if dark:
                flags.append("--blink-settings=preferredColorScheme=0")
            always = {
                "browserName": "chrome",
                "goog:chromeOptions": {"binary": CHROMIUM, "args": flags},
                "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
            }
            self._session = f"http://127.0.0.1:{port}/session"
            started = self._call("POST", "", {"capabilities": {"alwaysMatch": always}})
            self._session += f"/{started['sessionId']}"
            # The size of what is shown, rather than of a window with its frame.
            self.cdp(
                "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
            )
            self.open("about:blank")
            self.requests()  # of the browser's own first page
        except BaseException as error:
            self._process.kill()
            self._process.wait()
            error.add_note(self._log_file.read_text()[-2000:])
            raise

    def _port(self) -> int:
        found = re.search(r"successfully on port (\d+)", self._log_file.read_text())
        return int(found[1]) if found else 0

    def _call(self, method: str, path: str, document: Any = None) -> Any:
        reply = self._http.request(method, self._session + path, json=document)
        value = reply.json()["value"]
        assert reply.status_code == 200, value
        return value

    def close(self) -> None:
        self._call("DELETE", "")
        self._http.close()
        self._process.terminate()
        self._process.wait(ANSWER_SECONDS)

    def open(self, url: str) -> None:
        self._call("POST", "/url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """What a function's body returns, run in the page."""
        return self._call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def cdp(self, command: str, **parameters: Any) -> Any:
        """A command of the DevTools protocol."""
        return self._call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def find(self, selector: str) -> str:
        return self._call("POST", "/element", {"using": "css selector", "value": selector})[_ELEMENT]

    def click(self, selector: str) -> None:
        self._call("POST", f"/element/{self.find(selector)}/click", {})

    def type(self, selector: str, text: str) -> None:
        self._call("POST", f"/element/{self.find(selector)}/value", {"text": text})

    def text(self, selector: str) -> str:
        """What stands there, shown or not."""
        return self.run("return document.querySelector(arguments[0]).textContent", selector)

    def shown(self, selector: str) -> bool:
        return self._call("GET", f"/element/{self.find(selector)}/displayed")

    def point(self, selector: str, x: float, y: float) -> None:
        """Move the pointer there, in CSS pixels from the element's upper left corner."""
        left, top = self.run(
            "const e = document.querySelector(arguments[0]); e.scrollIntoView({block: 'center'});"
            "const box = e.getBoundingClientRect(); return [box.left, box.top]",
            selector,
        )
        move = {"type": "pointerMove", "x": round(left + x), "y": round(top + y), "duration": 0}
        pointer = {"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"}, "actions": [move]}
        self._call("POST", "/actions", {"actions": [pointer]})

    def console(self) -> list[str]:
        """What the browser complained of, and what the page logged, since last asked."""
        return [entry["message"] for entry in self._call("POST", "/se/log", {"type": "browser"})]

    def requests(self) -> list[str]:
        """The URLs that the page asked for since last asked, WebSockets too."""
        entries = self._call("POST", "/se/log", {"type": "performance"})
        messages = [json.loads(entry["message"])["message"] for entry in entries]
        urls = [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]
        return urls + [
            message["params"]["url"] for message in messages if message["method"] == "Network.webSocketCreated"
        ]


def visit(browser, url, model=None):
    """Open the page, wait for the models, and choose one."""
    browser.open(url)
    until(lambda: browser.run("return document.querySelectorAll('.model').length"), "the models are listed")
    if model:
        browser.click(f".model:has([value='{model}'])")


def table(browser, selector):
    """The cells of a table's rows, the header first."""
    return browser.run(
        "const rows = [...document.querySelector(arguments[0]).rows];"
        "return rows.map((row) => [...row.cells].map((cell) => cell.textContent))",
        selector,
    )


def assert_clean(browser, service, port=None):
    """No complaint of the browser's, and no request to anyone else."""
    complaints = browser.console()
    assert complaints == [], complaints
    urls = browser.requests()
    ours = re.compile(rf"(http|ws)://127\.0\.0\.1:{port or service.port}/")
    assert [url for url in urls if not ours.match(url) and not url.startswith("data:image/svg+xml,")] == []
