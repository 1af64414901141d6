"""A classification loop as pycoral's examples have it: Pillow resizes with LANCZOS, set_input, get_classes.

python bench/runtime_pil.py MODEL.tflite VIDEO FRAMES

After google-coral/pycoral: examples/classify_image.py, pycoral/adapters/common.py and classify.py.  The model's
uint8 input takes the pixels as they are, which spares this loop the examples' normalisation.
"""

from __future__ import annotations

import json
import sys
import time

import cv2
import numpy as np
from ai_edge_litert.interpreter import Interpreter
from PIL import Image


def set_input(interpreter: Interpreter, image: Image.Image) -> None:
    index = interpreter.get_input_details()[0]["index"]
    interpreter.tensor(index)()[0][:, :] = image


def get_classes(interpreter: Interpreter, top_k: int) -> list[tuple[int, float]]:
    details = interpreter.get_output_details()[0]
    data = interpreter.tensor(details["index"])().flatten()
    scale, zero = details["quantization"]
    scores = scale * (data.astype(np.int64) - zero)
    best = np.argpartition(scores, -top_k)[-top_k:]
    return sorted(((int(i), float(scores[i])) for i in best), key=lambda c: -c[1])


def main() -> None:
    model, video, frames = sys.argv[1:]
    interpreter = Interpreter(model_path=model)
    interpreter.allocate_tensors()
    _, height, width, _ = interpreter.get_input_details()[0]["shape"]
    capture = cv2.VideoCapture(video)
    for number in range(int(frames)):
        ok, frame = capture.read()
        if not ok:
            break
        image = Image.fromarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
        set_input(interpreter, image.resize((width, height), Image.Resampling.LANCZOS))
        interpreter.invoke()
        classes = [{"index": i, "score": score} for i, score in get_classes(interpreter, 5)]
        print(json.dumps({"frame": number, "time": time.time(), "classes": classes}), flush=True)


if __name__ == "__main__":
    main()
