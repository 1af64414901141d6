"""What a board without a screen sees, with the answers drawn on it, in a browser: http://localhost:8000/.

python examples/live_view.py digits.ferry /dev/video0
From another machine: ssh -L 8000:localhost:8000 pi@raspberrypi.local
"""

from __future__ import annotations

import sys
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
from edgeferry_runtime import Pipeline
from edgeferry_runtime.drawing import draw


class LiveView(BaseHTTPRequestHandler):
    """Sends the newest picture again and again, until the browser goes away."""

    newest = b""  # JPEG

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=picture")
        self.end_headers()
        sent = b""
        with suppress(ConnectionError):
            self.wfile.write(b"--picture\r\n")
            while True:
                if LiveView.newest != sent:
                    sent = LiveView.newest
                    self.wfile.write(b"Content-Type: image/jpeg\r\n\r\n" + sent + b"\r\n--picture\r\n")
                time.sleep(0.03)


def main(bundle: str, source: str, port: str = "8000") -> None:
    server = ThreadingHTTPServer(("localhost", int(port)), LiveView)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with Pipeline.open(source, bundle) as pipeline:
        for frame, result in pipeline:
            LiveView.newest = cv2.imencode(".jpg", draw(frame, result))[1].tobytes()


if __name__ == "__main__":
    main(*sys.argv[1:])
