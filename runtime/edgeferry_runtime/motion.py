"""The motion gate: frames that show nothing new are not run."""

from __future__ import annotations

import numpy as np

from edgeferry_runtime import opencv
from edgeferry_runtime.errors import FrameError, UsageError
from edgeferry_runtime.sources.base import Frame

__all__ = ["MotionGate", "small_luma"]

_SIDE = 64  # of the small picture that is compared, at most twice this
_LEVELS = 16  # by which a pixel differs when it is not noise


class MotionGate:
    """Compares each frame with the last one that passed, on a small luma picture.

    Comparing with the last one that passed, not with the last one that came, lets slow movement add up.

    Args:
        share: of the pixels that must differ by more than noise, 0 to 1.

    Raises:
        UsageError: the share is out of range.
    """

    def __init__(self, share: float) -> None:
        if not 0 <= share <= 1:
            raise UsageError("the motion gate's share is {}, it must be 0 to 1".format(share))
        self._share = share
        self._last: np.ndarray | None = None

    def moved(self, frame: Frame) -> bool:
        """Whether a frame is worth running; the first one, and the first of another size, is.

        Raises:
            FrameError: it cannot be decoded.
        """
        luma = small_luma(frame)
        last = self._last
        if last is not None and last.shape == luma.shape:
            differs = np.maximum(luma, last) - np.minimum(luma, last) > _LEVELS
            if np.count_nonzero(differs) <= self._share * differs.size:
                return False
        self._last = luma
        return True


def small_luma(frame: Frame) -> np.ndarray:
    """Every n-th pixel of the frame's luma (green, where it has colours), uint8, 64 to 127 a side when it can be.

    Raises:
        FrameError: the frame cannot be decoded.
    """
    pixels, color = frame.pixels, frame.color
    if color == "jpeg":
        cv2 = opencv.load("the motion gate")
        # An eighth of the size costs a fraction of decoding: only the first coefficients are transformed.
        luma = cv2.imdecode(pixels, cv2.IMREAD_REDUCED_GRAYSCALE_8)
        if luma is None:
            raise FrameError("{} bytes are no JPEG picture that can be decoded".format(len(pixels)))
    elif color in ("i420", "nv12"):
        luma = pixels[: pixels.shape[0] * 2 // 3]
    else:
        luma = pixels if pixels.ndim == 2 else pixels[..., 1]
    height, width = luma.shape
    return luma[:: max(1, height // _SIDE), :: max(1, width // _SIDE)].copy()
