"""Pixel formats of frames: what sources hand over, how large it is, and how one becomes the other.

numpy defines every conversion; OpenCV's integer arithmetic gives the same bytes, as the tests show for all values.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeferry_runtime import opencv
from edgeferry_runtime.errors import FrameError
from edgeferry_runtime.fields import did_you_mean

__all__ = [
    "FORMATS",
    "LUMA_LEVELS",
    "PLANAR",
    "check_frame",
    "convert",
    "decode_jpeg",
    "frame_size",
    "jpeg_size",
    "opencv_code",
    "planes",
    "to_bgr",
    "to_gray",
]

# The shape of Frame.pixels (always uint8) by format.
FORMATS = {
    "bgr": "[height, width, 3]",
    "rgb": "[height, width, 3]",
    "gray": "[height, width]",
    "i420": "[height * 3/2, width]",  # planes Y, U, V; even sides, no padding
    "nv12": "[height * 3/2, width]",  # plane Y, then U and V interleaved; even sides, no padding
    "jpeg": "[bytes]",  # a whole JPEG file, as MJPEG cameras send
}
PLANAR = ("i420", "nv12")

# ITU-R BT.601, limited range, with 20 fractional bits: ITUR_BT_601_* of OpenCV's
# modules/imgproc/src/color_yuv.simd.hpp.
_SHIFT, _HALF = 20, 1 << 19
_Y, _U_BLUE, _U_GREEN, _V_GREEN, _V_RED = 1220542, 2116026, -409993, -852492, 1673527
# What the levels of a Y plane are in gray: full range, as where U and V are neutral.
LUMA_LEVELS = np.clip((np.maximum(np.arange(256) - 16, 0) * _Y + _HALF) >> _SHIFT, 0, 255).astype(np.uint8)


def check_frame(pixels: np.ndarray, color: str) -> None:
    """
    Raises:
        FrameError: the pixels are no frame of that format.
    """
    if color not in FORMATS:
        raise FrameError(
            "{!r} is no pixel format{}".format(color, did_you_mean(str(color), list(FORMATS))),
            "There are {}.".format(", ".join(FORMATS)),
        )
    if pixels.dtype != np.uint8:
        raise FrameError("a frame holds uint8 levels, this one {}".format(pixels.dtype))
    shape = pixels.shape
    sound = {"bgr": len(shape) == 3, "rgb": len(shape) == 3, "jpeg": len(shape) == 1}.get(color, len(shape) == 2)
    if not sound or shape[2:] not in ((), (3,)):
        raise FrameError("a {} frame has the shape {}, this one {}".format(color, FORMATS[color], list(shape)))
    # Even sides: the rows, 3/2 of an even height, are a multiple of 3.
    if color in PLANAR and (shape[0] % 3 or shape[1] % 2):
        raise FrameError(
            "{} frames have even sides and no padding; {} is no such frame's shape".format(color, list(shape))
        )


def frame_size(pixels: np.ndarray, color: str) -> tuple[int, int]:
    """(width, height) of a frame in pixels; a JPEG's is read from its header.

    Raises:
        FrameError: a JPEG has no header.
    """
    if color == "jpeg":
        return jpeg_size(pixels)
    height = pixels.shape[0]
    return pixels.shape[1], height * 2 // 3 if color in PLANAR else height


def planes(pixels: np.ndarray, color: str) -> tuple[np.ndarray, ...]:
    """Views of the planes of an i420 frame (Y, U, V) or an nv12 frame (Y, and UV of [h/2, w/2, 2])."""
    rows, width = pixels.shape
    height = rows * 2 // 3
    chroma = pixels[height:].reshape(-1)
    if color == "nv12":
        return pixels[:height], chroma.reshape(height // 2, width // 2, 2)
    quarter = chroma.size // 2
    return (
        pixels[:height],
        chroma[:quarter].reshape(height // 2, width // 2),
        chroma[quarter:].reshape(height // 2, width // 2),
    )


def convert(pixels: np.ndarray, color: str, wanted: str) -> np.ndarray:
    """The definition of every conversion between raw formats.

    Args:
        pixels: uint8, of the shape in ``FORMATS``.
        color: its format, or "luma": a Y plane alone, [height, width].
        wanted: "bgr", "rgb" or "gray"; from luma only gray.

    Returns:
        uint8; the very array where it already is what is wanted.
    """
    if color == wanted:
        return pixels
    if color == "luma":
        return LUMA_LEVELS[pixels]
    if color in PLANAR:
        return _from_planes(pixels, color, wanted)
    if wanted == "gray":
        return to_gray(pixels, color)
    return np.repeat(pixels[..., None], 3, axis=2) if color == "gray" else pixels[..., ::-1]


def to_gray(pixels: np.ndarray, color: str) -> np.ndarray:
    """Luma of a colour picture, uint8 [h, w, 3] to [h, w].

    ITU-R BT.601 weights with 15 fractional bits, rounded half up: OpenCV's integer arithmetic
    (modules/imgproc/src/color_rgb.simd.hpp), equal to it for all 2^24 colours.
    """
    red, blue = (0, 2) if color == "rgb" else (2, 0)
    wide = pixels.astype(np.uint32)
    luma = wide[..., red] * 9798 + wide[..., 1] * 19235 + wide[..., blue] * 3735
    return ((luma + (1 << 14)) >> 15).astype(np.uint8)


def _from_planes(pixels: np.ndarray, color: str, wanted: str) -> np.ndarray:
    y, *chroma = planes(pixels, color)
    u, v = chroma if color == "i420" else (chroma[0][..., 0], chroma[0][..., 1])
    u, v = (np.repeat(np.repeat(part, 2, axis=0), 2, axis=1).astype(np.int32) - 128 for part in (u, v))
    luma = np.maximum(y.astype(np.int32) - 16, 0) * _Y + _HALF
    rgb = (luma + v * _V_RED, luma + v * _V_GREEN + u * _U_GREEN, luma + u * _U_BLUE)
    picture = np.stack(rgb if wanted != "bgr" else rgb[::-1], axis=-1) >> _SHIFT
    picture = np.clip(picture, 0, 255).astype(np.uint8)
    return to_gray(picture, "rgb") if wanted == "gray" else picture


def opencv_code(cv2: Any, color: str, wanted: str) -> int:
    """cvtColor's code for a conversion that :func:`convert` defines, but from luma, and from planes to gray."""
    name = "COLOR_YUV2{1}_{0}" if color in PLANAR else "COLOR_{0}2{1}"
    code: int = getattr(cv2, name.format(color.upper(), wanted.upper()))
    return code


def to_bgr(pixels: np.ndarray, color: str) -> np.ndarray:
    """A frame as uint8 [height, width, 3] in BGR order; the very array where it already is.

    Raises:
        FrameError: the pixels are no frame of that format.
        DependencyError: it is a JPEG, and OpenCV is absent.
    """
    check_frame(pixels, color)
    if color == "jpeg":
        return decode_jpeg(pixels)
    if color == "bgr" or not opencv.available():
        return convert(pixels, color, "bgr")
    cv2 = opencv.load("converting frames")
    return np.asarray(cv2.cvtColor(pixels, opencv_code(cv2, color, "bgr")))


def decode_jpeg(data: np.ndarray, reduction: int = 1, gray: bool = False) -> np.ndarray:
    """The pixels of a JPEG file, turned as its EXIF orientation says.

    Args:
        data: uint8 [bytes].
        reduction: 1, 2, 4 or 8: sides divided by it, rounded up, in the decoder's own transform.
        gray: take the file's luma instead of its colours.

    Returns:
        uint8 [height, width, 3] in BGR order, or [height, width].

    Raises:
        FrameError: it cannot be decoded.
        DependencyError: OpenCV is absent.
    """
    cv2 = opencv.load("decoding JPEG frames")
    kind = "GRAYSCALE" if gray else "COLOR"
    flag = getattr(cv2, "IMREAD_" + (kind if reduction == 1 else "REDUCED_{}_{}".format(kind, reduction)))
    try:
        decoded = cv2.imdecode(data, flag) if len(data) else None
    except cv2.error:  # a header that promises more pixels than OpenCV decodes
        decoded = None
    if decoded is None:
        raise FrameError(
            "{} bytes are no JPEG picture that can be decoded".format(len(data)),
            "Check the camera's cable and its MJPEG setting; a single torn frame may be skipped.",
        )
    return np.asarray(decoded)


def jpeg_size(data: np.ndarray) -> tuple[int, int]:
    """(width, height) that a JPEG file has when decoded, from its headers; orientations 5 to 8 swap the sides.

    Source: ITU-T T.81, B.1.1 (markers) and B.2.2 (frame header); CIPA DC-008 (Exif), 4.6.

    Args:
        data: uint8 [bytes].

    Raises:
        FrameError: there is no such header: not a JPEG, or cut off before it.
    """
    at, end, turned = 2, len(data), False
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
                    return (height, width) if turned else (width, height)
                break
            if marker in (0xD9, 0xDA) or length < 2:
                break
            if marker == 0xE1:
                turned = turned or _orientation(bytes(data[at + 4 : at + 2 + length])) >= 5
            at += 2 + length
    raise FrameError("{} bytes are no whole JPEG picture".format(end))


def _orientation(segment: bytes) -> int:
    """The EXIF orientation (1 to 8) in an APP1 segment; 1 where it says none."""
    if segment[:6] != b"Exif\0\0" or segment[6:8] not in (b"II", b"MM"):
        return 1
    tiff = segment[6:]

    def number(at: int, size: int) -> int:
        return int.from_bytes(tiff[at : at + size], "little" if tiff[:1] == b"I" else "big")

    directory = number(4, 4)
    for entry in range(directory + 2, directory + 2 + 12 * number(directory, 2), 12):
        if entry + 12 > len(tiff):
            break
        if number(entry, 2) == 0x0112:
            value = number(entry + 8, 2)
            return value if 1 <= value <= 8 else 1
    return 1
