"""The smallest RTSP server: one MJPEG stream inside the connection.

RFC 2326 (RTSP; 10.12 interleaved data), RFC 3550 (RTP), RFC 2435 (JPEG in RTP: baseline, standard Huffman tables,
4:2:0, as OpenCV encodes).
"""

from __future__ import annotations

import base64
import contextlib
import socketserver
import struct
import threading

SDP = b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nt=0 0\r\nm=video 0 RTP/AVP 26\r\na=control:track0\r\n"
FPS = 50


class RtspServer(socketserver.ThreadingTCPServer):
    """Sends ``picture`` for ever.

    ``login`` is "user:password", or None; ``after`` is how many frames the first client gets, and what happens
    then: "close" or "hang".
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, picture, size):
        super().__init__(("127.0.0.1", 0), Session)
        self.picture, self.size = picture, size
        self.login = self.after = None
        self.plays = 0
        self.stopping = threading.Event()

    def url(self, login=""):
        return f"rtsp://{login}127.0.0.1:{self.server_address[1]}/live"


class Session(socketserver.StreamRequestHandler):
    def handle(self):
        with contextlib.suppress(OSError):
            while True:
                lines = []
                while line := self.rfile.readline().strip():
                    lines.append(line.decode())
                if not lines:
                    break
                headers = dict(line.split(": ", 1) for line in lines[1:])
                if self.answer(lines[0].split()[0], headers) == "PLAY":
                    self.play()
                    break

    def answer(self, method, headers):
        status, extra, body = "200 OK", [], b""
        login = self.server.login
        if login and headers.get("Authorization") != "Basic " + base64.b64encode(login.encode()).decode():
            status, extra, method = "401 Unauthorized", ['WWW-Authenticate: Basic realm="camera"'], ""
        elif method == "OPTIONS":
            extra = ["Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN"]
        elif method == "DESCRIBE":
            extra, body = ["Content-Type: application/sdp", f"Content-Length: {len(SDP)}"], SDP
        elif method == "SETUP":
            extra = ["Transport: RTP/AVP/TCP;unicast;interleaved=0-1", "Session: 1"]
        elif method == "PLAY":
            extra = ["Session: 1"]
        head = "\r\n".join([f"RTSP/1.0 {status}", f"CSeq: {headers['CSeq']}", *extra, "", ""])
        self.wfile.write(head.encode() + body)
        return method

    def play(self):
        server = self.server
        server.plays += 1
        faulty = server.after and server.plays == 1
        for i in range(10**9):
            if server.stopping.wait(1 / FPS):
                return
            if faulty and i >= server.after[0]:
                if server.after[1] == "hang":
                    server.stopping.wait(30)
                return
            for packet in packets(server.picture, server.size, i):
                self.wfile.write(b"$\0" + struct.pack(">H", len(packet)) + packet)


def packets(jpeg, size, number):
    """RTP packets of one JPEG."""
    tables, at = b"", 2
    while jpeg[at + 1] != 0xDA:
        length = struct.unpack_from(">H", jpeg, at + 2)[0]
        if jpeg[at + 1] == 0xDB:
            body = jpeg[at + 4 : at + 2 + length]
            tables += b"".join(body[i + 1 : i + 65] for i in range(0, len(body), 65))
        at += 2 + length
    at += 2 + struct.unpack_from(">H", jpeg, at + 2)[0]
    scan = jpeg[at:-2]
    for count, offset in enumerate(range(0, len(scan), 1000)):
        part = scan[offset : offset + 1000]
        last = offset + 1000 >= len(scan)
        sequence = (number * -(-len(scan) // 1000) + count) & 0xFFFF
        rtp = struct.pack(">BBHII", 0x80, 26 | last << 7, sequence, number * 90000 // FPS & 0xFFFFFFFF, 1)
        header = struct.pack(">IBBBB", offset, 1, 255, size[0] // 8, size[1] // 8)
        if offset == 0:
            header += struct.pack(">HH", 0, len(tables)) + tables
        yield rtp + header + part
