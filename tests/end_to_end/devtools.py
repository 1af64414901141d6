"""Chromium without a screen, driven over its DevTools protocol with the standard library alone."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import socket
import struct
import subprocess
import time
import urllib.request
from pathlib import Path

START_S = 60
ANSWER_S = 60


def chromium() -> str | None:
    """The browser's command, None where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return next((path for path in map(shutil.which, names) if path), None)


class Socket:
    """As much of RFC 6455 as a client of the DevTools needs."""

    def __init__(self, host: str, port: int, path: str) -> None:
        self._socket = socket.create_connection((host, port), timeout=ANSWER_S)
        key = base64.b64encode(os.urandom(16)).decode()
        lines = (
            f"GET {path} HTTP/1.1", f"Host: {host}:{port}", "Upgrade: websocket", "Connection: Upgrade",
            f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13",
        )  # fmt: skip
        self._socket.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        self._file = self._socket.makefile("rb")
        if b" 101 " not in self._file.readline():
            raise OSError("no websocket there")
        while self._file.readline() not in (b"\r\n", b""):
            pass

    def send(self, text: str) -> None:
        data = text.encode()
        size = struct.pack("!BH", 254, len(data)) if len(data) > 125 else struct.pack("!B", 128 | len(data))
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(data))
        self._socket.sendall(b"\x81" + size + mask + masked)

    def receive(self) -> str:
        """The next message; pings need no answer here."""
        text = b""
        while True:
            first, second = self._file.read(2)
            length = second & 127
            if length > 125:
                length = int.from_bytes(self._file.read(2 if length == 126 else 8), "big")
            data = self._file.read(length)
            if first & 15 == 8:
                raise OSError("the browser closed the connection")
            if first & 15 in (0, 1):
                text += data
                if first & 128:
                    return text.decode()

    def close(self) -> None:
        self._file.close()
        self._socket.close()


class Browser:
    """One page in a browser of its own.

    Attributes:
        complaints: errors and warnings of the console, exceptions, requests that failed.
    """

    def __init__(self, folder: Path, *arguments: str) -> None:
        command = [
            chromium(), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--no-first-run", "--disable-background-networking", "--remote-debugging-port=0",
            f"--user-data-dir={folder}", *arguments, "about:blank",
        ]  # fmt: skip
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.complaints: list[str] = []
        self._number = 0
        try:
            port = self._port(folder / "DevToolsActivePort")
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=ANSWER_S) as answer:
                target = next(item for item in json.load(answer) if item["type"] == "page")
            path = target["webSocketDebuggerUrl"].split(str(port), 1)[1]
            self._socket = Socket("127.0.0.1", port, path)
        except BaseException:
            self._end()
            raise
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.command(domain + ".enable")

    def command(self, method: str, **parameters):
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.receive())
            if message.get("id") == self._number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return message["result"]
            self._note(message)

    def evaluate(self, expression: str):
        """The value of a JavaScript expression; a promise is waited for."""
        said = self.command("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in said:
            raise RuntimeError(str(said["exceptionDetails"]))
        return said["result"].get("value")

    def wait_for(self, expression: str, seconds: float = 60):
        """The expression's value as soon as it is true."""
        deadline = time.monotonic() + seconds
        while True:
            value = self.evaluate(expression)
            if value:
                return value
            assert time.monotonic() < deadline, f"it did not come true: {expression}"
            time.sleep(0.2)

    def open(self, url: str) -> None:
        self.command("Page.navigate", url=url)

    def size(self, width: int, height: int, mobile: bool = False) -> None:
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile
        )

    def scheme(self, name: str) -> None:
        """ "light" or "dark"."""
        feature = {"name": "prefers-color-scheme", "value": name}
        self.command("Emulation.setEmulatedMedia", features=[feature])

    def screenshot(self, whole: bool = True) -> bytes:
        """A PNG of the page."""
        said = self.command("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        return base64.b64decode(said["data"])

    def close(self) -> None:
        with contextlib.suppress(OSError, RuntimeError):
            self.command("Browser.close")
        self._socket.close()
        self._end()

    def _end(self) -> None:
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _port(self, file: Path) -> int:
        deadline = time.monotonic() + START_S
        while not (file.is_file() and file.read_text().strip()):
            assert time.monotonic() < deadline, "the browser did not start"
            assert self._process.poll() is None, "the browser ended"
            time.sleep(0.1)
        return int(file.read_text().split()[0])

    def _note(self, message) -> None:
        method, said = message.get("method"), message.get("params", {})
        if method == "Runtime.consoleAPICalled" and said["type"] in ("error", "warning", "assert"):
            self.complaints.append(str([argument.get("value") for argument in said["args"]]))
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(said["exceptionDetails"]))
        elif method == "Log.entryAdded" and said["entry"]["level"] in ("error", "warning"):
            self.complaints.append(said["entry"]["text"] + " " + said["entry"].get("url", ""))
        elif method == "Network.responseReceived" and said["response"]["status"] >= 400:
            self.complaints.append(f"{said['response']['status']} {said['response']['url']}")
