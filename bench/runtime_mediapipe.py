"""MediaPipe's ImageClassifier in LIVE_STREAM mode on a video, as its own guide has it.

python bench/runtime_mediapipe.py MODEL.tflite VIDEO FRAMES

It drops frames that come while it is busy; at most IN_FLIGHT are given to it at a time, so that no decoding is
spent on dropped ones and the next frame is decoded while it works on the last.
"""

from __future__ import annotations

import json
import sys
import threading
import time

import cv2
import mediapipe as mp
from mediapipe.tasks.python import BaseOptions, vision

IN_FLIGHT = 2
PATIENCE = 1.0  # seconds; a frame that was dropped after all never comes back


def main() -> None:
    model, video, frames = sys.argv[1:]
    room = threading.Semaphore(IN_FLIGHT)

    def answer(result, image: mp.Image, timestamp_ms: int) -> None:
        classes = [{"index": c.index, "score": c.score} for c in result.classifications[0].categories]
        print(json.dumps({"frame": timestamp_ms, "time": time.time(), "classes": classes}), flush=True)
        room.release()

    options = vision.ImageClassifierOptions(
        base_options=BaseOptions(model_asset_path=model),
        running_mode=vision.RunningMode.LIVE_STREAM,
        max_results=5,
        result_callback=answer,
    )
    capture = cv2.VideoCapture(video)
    with vision.ImageClassifier.create_from_options(options) as classifier:
        for number in range(int(frames)):
            ok, frame = capture.read()
            if not ok:
                break
            room.acquire(timeout=PATIENCE)
            rgb = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
            classifier.classify_async(mp.Image(image_format=mp.ImageFormat.SRGB, data=rgb), number)


if __name__ == "__main__":
    main()
