"""A headless Chromium that a test looks at pages with, by its debugging protocol."""

import base64
import json
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from tornado.ioloop import IOLoop
from tornado.websocket import WebSocketClientConnection, websocket_connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--remote-debugging-port=0"),
)
#: seconds
PATIENCE, LOOK = 60, 0.1


class Browser:
    """One page of a browser that runs."""

    def __init__(self, port: int) -> None:
        self._port, self._number = port, 0
        self._loop = IOLoop(make_current=False)
        self._socket: WebSocketClientConnection | None = None

    def open(self, url: str, width: int = 1400, height: int = 1000) -> None:
        """Go to a page."""
        request = urllib.request.Request(f"http://127.0.0.1:{self._port}/json/new?about:blank", method="PUT")
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            address = json.load(answer)["webSocketDebuggerUrl"]

        async def connect() -> WebSocketClientConnection:
            return await websocket_connect(address, max_message_size=1 << 28)

        self._socket = self._loop.run_sync(connect, PATIENCE)
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.ask("Emulation.setDeviceMetricsOverride", **size)
        self.ask("Page.navigate", url=url)

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Have something done, and return what comes of it."""
        self._number += 1
        number, socket = self._number, self._socket
        assert socket is not None

        async def exchange() -> dict[str, Any]:
            await socket.write_message(json.dumps({"id": number, "method": method, "params": params}))
            while True:
                message = json.loads(await socket.read_message() or "{}")
                if message.get("id") == number:
                    return message["result"]  # type: ignore[no-any-return]

        return self._loop.run_sync(exchange, PATIENCE)

    def value(self, expression: str) -> Any:
        """Return the value of JavaScript."""
        return self.ask("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def wait(self, expression: str) -> Any:
        """Return the value of JavaScript once it is true."""
        deadline = monotonic() + PATIENCE
        while not (found := self.value(expression)):
            assert monotonic() < deadline, f"{expression} is still {found!r}"
            sleep(LOOK)
        return found

    def shoot(self, path: Path) -> None:
        """Write what is seen as a PNG."""
        path.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot", format="png")["data"]))

    def close(self) -> None:
        """Leave the page."""
        if self._socket is not None:
            self._socket.close()
        self._loop.close()


@contextmanager
def browser(directory: Path) -> Iterator[Browser]:
    """Run a browser whose profile lies in a directory."""
    assert CHROMIUM is not None
    profile = directory / "profile"
    process = subprocess.Popen(
        [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = monotonic() + PATIENCE
        while not (told := profile / "DevToolsActivePort").exists() or not told.read_text():
            assert monotonic() < deadline
            assert process.poll() is None
            sleep(LOOK)
        page = Browser(int(told.read_text().split()[0]))
        try:
            yield page
        finally:
            page.close()
    finally:
        process.terminate()
        process.wait(PATIENCE)
