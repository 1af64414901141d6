"""The five pictures of a folder that are most like a given one, by a model that makes embeddings.

python examples/find_similar.py embedder.ferry picture.jpg folder
"""

from __future__ import annotations

import sys

from edgeferry_runtime import Model, Pipeline
from edgeferry_runtime.sources import open_source
from edgeferry_runtime.tasks.embed import Embedding


def embeddings(model: Model, uri: str) -> dict[str, Embedding]:
    """By the pictures' names."""
    with open_source(uri) as source:
        return {frame.name: result.answer for frame, result in Pipeline(source, model)}


def main(bundle: str, picture: str, folder: str) -> None:
    with Model.open(bundle) as model:
        (wanted,) = embeddings(model, picture).values()
        found = {name: wanted.similarity(other) for name, other in embeddings(model, folder).items()}
    for name in sorted(found, key=found.__getitem__, reverse=True)[:5]:
        print(f"{found[name]:7.3f}  {name}")


if __name__ == "__main__":
    main(*sys.argv[1:])
