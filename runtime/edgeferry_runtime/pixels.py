"""Pixel formats of frames: what sources hand over, how large it is, and each as BGR for people to look at."""

from __future__ import annotations

import numpy as np

from edgeferry_runtime import opencv
from edgeferry_runtime.errors import FrameError

__all__ = ["FORMATS", "frame_size", "jpeg_size", "to_bgr"]

# The shape of Frame.pixels (always uint8) by format.
FORMATS = {
    "bgr": "[height, width, 3]",
    "rgb": "[height, width, 3]",
    "gray": "[height, width]",
    "i420": "[height * 3/2, width]",  # planes Y, U, V; even sides, no padding
    "nv12": "[height * 3/2, width]",  # plane Y, then U and V interleaved; even sides, no padding
    "jpeg": "[bytes]",  # a whole JPEG file, as MJPEG cameras send
}


def frame_size(pixels: np.ndarray, color: str) -> tuple[int, int]:
    """(width, height) of a frame in pixels; a JPEG's is read from its header.

    Raises:
        FrameError: the pixels are no frame of that format.
    """
    if color == "jpeg":
        return jpeg_size(pixels)
    height = pixels.shape[0]
    return pixels.shape[1], height * 2 // 3 if color in ("i420", "nv12") else height


def jpeg_size(data: np.ndarray) -> tuple[int, int]:
    """(width, height) from the frame header of a JPEG file.

    Source: ITU-T T.81, B.1.1 (markers) and B.2.2 (frame header).

    Args:
        data: uint8 [bytes].

    Raises:
        FrameError: there is no such header: not a JPEG, or cut off before it.
    """
    at, end = 2, len(data)
    if end >= 4 and data[0] == 0xFF and data[1] == 0xD8:
        while at + 9 <= end and data[at] == 0xFF:
            marker = int(data[at + 1])
            if marker == 0xFF:  # fill bytes may stand before a marker
                at += 1
                continue
            length = int(data[at + 2]) << 8 | int(data[at + 3])
            # SOF0 to SOF15 without DHT, JPG and DAC, which share their range.
            if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
                height = int(data[at + 5]) << 8 | int(data[at + 6])
                width = int(data[at + 7]) << 8 | int(data[at + 8])
                if width and height:
                    return width, height
                break
            if marker in (0xD9, 0xDA) or length < 2:
                break
            at += 2 + length
    raise FrameError("{} bytes are no whole JPEG picture".format(end))


def to_bgr(pixels: np.ndarray, color: str) -> np.ndarray:
    """A frame as uint8 [height, width, 3] in BGR order; the very array where it already is.

    Raises:
        FrameError: the pixels are no frame of that format.
        DependencyError: it needs OpenCV, which is absent.
    """
    if color == "bgr":
        return pixels
    cv2 = opencv.load("converting frames")
    if color == "jpeg":
        decoded = cv2.imdecode(pixels, cv2.IMREAD_COLOR)
        if decoded is None:
            raise FrameError("{} bytes are no JPEG picture that can be decoded".format(len(pixels)))
        return decoded
    codes = {
        "rgb": cv2.COLOR_RGB2BGR,
        "gray": cv2.COLOR_GRAY2BGR,
        "i420": cv2.COLOR_YUV2BGR_I420,
        "nv12": cv2.COLOR_YUV2BGR_NV12,
    }
    if color not in codes:
        raise FrameError("{!r} is no pixel format; there are {}".format(color, ", ".join(FORMATS)))
    return cv2.cvtColor(pixels, codes[color])
