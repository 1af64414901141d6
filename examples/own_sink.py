"""A sink of one's own: the best class of each frame into an SQLite database.

python examples/own_sink.py digits.ferry clip.mp4 seen.db
"""

from __future__ import annotations

import sqlite3
import sys

from edgeferry_runtime import Pipeline
from edgeferry_runtime.errors import SinkError
from edgeferry_runtime.results import Result
from edgeferry_runtime.sinks import Sink
from edgeferry_runtime.sources import Frame


class SqliteSink(Sink):
    def __init__(self, path: str) -> None:
        self.uri = "sqlite:" + path
        self._database = sqlite3.connect(path, check_same_thread=False)  # write() has a thread of its own
        self._database.execute(
            "CREATE TABLE IF NOT EXISTS seen (time REAL, frame INTEGER, label TEXT, score REAL)"
        )

    def write(self, frame: Frame, result: Result) -> None:
        best = result.answer.classes[:1]
        rows = [(result.time, frame.number, b.label or str(b.index), b.score) for b in best]
        try:
            with self._database:
                self._database.executemany("INSERT INTO seen VALUES (?, ?, ?, ?)", rows)
        except sqlite3.Error as error:  # what the pipeline knows how to survive
            raise SinkError(f"{self.uri}: {error}") from error

    def close(self) -> None:
        self._database.close()


def main(bundle: str, uri: str, database: str) -> None:
    with Pipeline.open(uri, bundle, [SqliteSink(database)]) as pipeline:
        print(pipeline.run().to_text())


if __name__ == "__main__":
    main(*sys.argv[1:])
