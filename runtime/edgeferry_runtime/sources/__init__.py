"""Frame sources: where pictures come from, one small file a kind.

/dev/video0 or 0              a V4L2 or USB camera
FILE.avi, .mp4, ...           a video file
FOLDER or FILE.jpg            pictures, in the order of their names
synthetic:640x480[@FPS]       moving bars, for trying out without a camera
"""

from __future__ import annotations

import importlib
import os
import re

from edgeferry_runtime.errors import SourceError, UsageError
from edgeferry_runtime.fields import did_you_mean
from edgeferry_runtime.sources.base import PICTURES, Frame, FrameSource

__all__ = ["PICTURES", "Frame", "FrameSource", "open_source"]

_SCHEMES = ("synthetic",)
_CLASSES = {
    "camera": ("edgeferry_runtime.sources.camera", "CameraSource"),
    "folder": ("edgeferry_runtime.sources.folder", "FolderSource"),
    "video": ("edgeferry_runtime.sources.video", "VideoSource"),
    "synthetic": ("edgeferry_runtime.sources.synthetic", "SyntheticSource"),
}


def open_source(uri: str) -> FrameSource:
    """Open what ``uri`` names; see the table above.

    Raises:
        UsageError: it names no kind of source.
        SourceError: it cannot be opened.
        DependencyError: it needs OpenCV, which is absent.
    """
    module, name = _CLASSES[_kind(uri)]
    source: FrameSource = getattr(importlib.import_module(module), name)(uri)
    return source


def _kind(uri: str) -> str:
    scheme = re.match(r"([a-z][a-z0-9+-]+):", uri)  # two letters at least: C:\ is no scheme
    if scheme:
        if scheme.group(1) in _SCHEMES:
            return scheme.group(1)
        raise UsageError(
            "{!r} is no kind of source{}".format(uri, did_you_mean(scheme.group(1), _SCHEMES)),
            "Sources are a camera (/dev/video0), a video file, a folder of pictures, and synthetic:640x480.",
        )
    if re.match(r"(/dev/video)?\d+\Z", uri):
        return "camera"
    if os.path.isdir(uri) or uri.lower().endswith(PICTURES):
        return "folder"
    if os.path.exists(uri):
        return "video"
    raise SourceError("{}: no such file, folder or camera".format(uri), "Check the path given with --source.")
