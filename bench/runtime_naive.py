"""The loop everybody writes around LiteRT (or tflite-runtime) and OpenCV: a video in, a line of JSON a frame out.

python bench/runtime_naive.py MODEL.tflite VIDEO FRAMES THREADS    also on Python 3.7
"""

from __future__ import annotations

import json
import sys
import time

import cv2
import numpy as np

try:
    from ai_edge_litert.interpreter import Interpreter
except ImportError:
    from tflite_runtime.interpreter import Interpreter


def main() -> None:
    model, video, frames, threads = sys.argv[1:]
    interpreter = Interpreter(model_path=model, num_threads=int(threads))
    interpreter.allocate_tensors()
    source, target = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    height, width = source["shape"][1:3]
    capture = cv2.VideoCapture(video)
    for number in range(int(frames)):
        ok, frame = capture.read()
        if not ok:
            break
        rgb = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        tensor = cv2.resize(rgb, (width, height)).astype(np.float32) / 255
        if source["dtype"] == np.int8:
            scale, zero = source["quantization"]
            tensor = np.clip(np.round(tensor / scale + zero), -128, 127).astype(np.int8)
        interpreter.set_tensor(source["index"], tensor[np.newaxis])
        interpreter.invoke()
        scores = interpreter.get_tensor(target["index"])[0]
        if target["dtype"] == np.int8:
            scale, zero = target["quantization"]
            scores = (scores.astype(np.float32) - zero) * scale
        best = np.argsort(scores)[::-1][:5]
        classes = [{"index": int(i), "score": float(scores[i])} for i in best]
        print(json.dumps({"frame": number, "time": time.time(), "classes": classes}), flush=True)


if __name__ == "__main__":
    main()
