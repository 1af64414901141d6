"""What run.json says of several models on one source, each in a lane of its own, and of ensembles among them.

Part of the contract: the workstation writes it and the board reads it, both through this module.
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass, fields
from typing import Any, Callable, Mapping, Sequence

from edgeferry_runtime.fields import Fields, did_you_mean
from edgeferry_runtime.model_config import LINE, ModelConfig

__all__ = ["HOW", "LOADS", "PLACES", "EnsembleConfig", "LaneConfig", "lanes_problems"]

PLACES = ("auto", "thread", "worker")
LOADS = ("eager", "lazy")
HOW = ("mean", "vote")

_NAME = re.compile(r"[a-z0-9_-]{1,32}\Z")
_CUTTING = {"classes": (), "min_score": 0.0, "margin": 0.0, "max_crops": 5}  # what only a lane after another has
# What decides which frames a lane runs: members of an ensemble must agree on it.
_CHOOSING = ("every", "after", *_CUTTING, "fps", "motion")
_FILES = ("jsonl", "csv", "annotate", "record", "gpio")  # sinks whose place belongs to one of them


@dataclass(frozen=True)
class LaneConfig:
    """One model and the frames it runs.

    Attributes:
        bundle: a ``.ferry`` file or a folder, on the board; None is the release.
        model: further choices about the model, beside the other keys.
        every: one frame in so many.
        after: name of a detector; the frames are what its boxes show.
        classes, min_score: only boxes of these labels (none: all), with at least this score, 0 to 1.
        margin: around a box, as a share of its sides.
        max_crops: so many boxes of a frame at most, the best ones.
        process: "thread" runs it in the loop's process, "worker" in one of its own, "auto" measures.
        load: "eager" before the loop begins, "lazy" with its first frame.
        sinks: where its results go.
        fps, max_age_ms, motion: as those of the loop.
    """

    bundle: str | None = None
    model: ModelConfig = ModelConfig()  # noqa: RUF009 - it is frozen
    every: int = 1
    after: str | None = None
    classes: tuple[str, ...] = ()
    min_score: float = 0.0
    margin: float = 0.0
    max_crops: int = 5
    process: str = "auto"
    load: str = "eager"
    sinks: tuple[str, ...] = ()
    fps: float | None = None
    max_age_ms: float | None = None
    motion: float | None = None

    @classmethod
    def read(cls, fields: Fields) -> LaneConfig:
        """Read it, noting every problem in ``fields``."""
        return cls(
            bundle=fields.optional("bundle", lambda key: _line(fields, key)),
            model=ModelConfig.read(fields),
            every=fields.integer("every", 1, minimum=1),
            after=fields.optional("after", lambda key: fields.text(key)),
            classes=fields.optional("classes", lambda key: fields.texts(key, 1)) or (),
            min_score=fields.share("min_score", 0.0),
            margin=fields.number("margin", 0.0, minimum=0, maximum=10),
            max_crops=fields.integer("max_crops", 5, minimum=1, maximum=100),
            process=fields.choice("process", PLACES, "auto"),
            load=fields.choice("load", LOADS, "eager"),
            sinks=fields.optional("sinks", lambda key: fields.texts(key)) or (),
            fps=fields.optional("fps", lambda key: fields.number(key, above=0)),
            max_age_ms=fields.optional("max_age_ms", lambda key: fields.number(key, above=0)),
            motion=fields.optional("motion", fields.share),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; what is as it is by default is left out."""
        said = _said(self)
        said.pop("model", None)
        return dict(_said(self.model), **said)


@dataclass(frozen=True)
class EnsembleConfig:
    """Classifiers whose answers about the same frame become one.

    Attributes:
        of: names of the members' lanes, two or more.
        how: "mean" of the scores, or "vote": the class most of them put first.
        threshold: lowest joint score to report, 0 to 1: of the mean, or of the share of the votes.
        top_k: so many classes at most.
        sinks: where its results go.
    """

    of: tuple[str, ...]
    how: str = "mean"
    threshold: float = 0.0
    top_k: int = 5
    sinks: tuple[str, ...] = ()

    @classmethod
    def read(cls, fields: Fields) -> EnsembleConfig:
        """Read it, noting every problem in ``fields``."""
        return cls(
            of=fields.texts("of"),
            how=fields.choice("how", HOW, "mean"),
            threshold=fields.share("threshold", 0.0),
            top_k=fields.integer("top_k", 5, minimum=1),
            sinks=fields.optional("sinks", lambda key: fields.texts(key)) or (),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; what is as it is by default is left out."""
        return dict({"of": list(self.of)}, **{k: v for k, v in _said(self).items() if k != "of"})


def lanes_problems(
    lanes: Mapping[str, LaneConfig],
    ensembles: Mapping[str, EnsembleConfig],
    sinks: Sequence[str] = (),
    sink_problems: Callable[[str], Sequence[str]] = lambda uri: (),
) -> list[tuple[str, str]]:
    """What is wrong with them together, as (path in run.json, problem); all problems at once.

    Args:
        lanes, ensembles: by name, each read without problems.
        sinks: those at the top of the file.
        sink_problems: what is wrong with a sink's uri by itself.
    """
    problems = []
    for name in [*lanes, *ensembles]:
        if not _NAME.match(name):
            problems.append((_path(name, lanes), "is no name: 1 to 32 of a-z, 0-9, - and _"))
    problems += [
        ("ensembles." + name, "is the name of a model as well; results could not be told apart")
        for name in ensembles
        if name in lanes
    ]
    for name, lane in lanes.items():
        problems += _after_problems(name, lane, lanes, ensembles)
    for name, ensemble in ensembles.items():
        problems += _member_problems(name, ensemble, lanes, ensembles)
    return problems + _sink_problems(lanes, ensembles, sinks, sink_problems)


def _path(name: str, lanes: Mapping[str, LaneConfig]) -> str:
    return "{}.{}".format("models" if name in lanes else "ensembles", name)


def _after_problems(
    name: str, lane: LaneConfig, lanes: Mapping[str, LaneConfig], ensembles: Mapping[str, EnsembleConfig]
) -> list[tuple[str, str]]:
    path = "models.{}.".format(name)
    if lane.after is None:
        return [
            (path + key, "is about boxes, and needs the model that finds them: after = NAME")
            for key, default in _CUTTING.items()
            if getattr(lane, key) != default
        ]
    if lane.after in ensembles and lane.after not in lanes:
        return [(path + "after", "{!r} is an ensemble, which gives no boxes".format(lane.after))]
    if lane.after not in lanes:
        return [(path + "after", _unknown(lane.after, list(lanes)))]
    circle = [name]
    while True:
        before = lanes[circle[-1]].after
        if before is None or before not in lanes or before in circle[1:]:
            return []  # a circle further on is named by those that are in it
        circle.append(before)
        if before == name:
            break
    if name != min(circle):
        return []  # named once
    return [(path + "after", "goes in a circle: {}".format(" after ".join(circle)))]


def _unknown(name: str, known: Sequence[str]) -> str:
    return "{!r} is no model{}; there are {}".format(name, did_you_mean(name, known), ", ".join(known) or "none")


def _member_problems(
    name: str, ensemble: EnsembleConfig, lanes: Mapping[str, LaneConfig], ensembles: Mapping[str, EnsembleConfig]
) -> list[tuple[str, str]]:
    path = "ensembles.{}.of".format(name)
    problems = []
    if len(ensemble.of) < 2:
        problems.append((path, "names {} models, an ensemble has two or more".format(len(ensemble.of))))
    for i, member in enumerate(ensemble.of):
        where = "{}[{}]".format(path, i)
        if member in ensemble.of[:i]:
            problems.append((where, "{!r} is named twice".format(member)))
        elif member in ensembles and member not in lanes:
            problems.append((where, "{!r} is an ensemble; name its members".format(member)))
        elif member not in lanes:
            problems.append((where, _unknown(member, list(lanes))))
    known = [member for member in ensemble.of if member in lanes]
    for member in known[1:]:
        first, other = lanes[known[0]], lanes[member]
        differing = [key for key in _CHOOSING if getattr(first, key) != getattr(other, key)]
        if differing:
            problems.append(
                (path, "{!r} and {!r} do not run the same frames: their {} differ{}".format(
                    known[0], member, " and ".join(differing), "s" if len(differing) == 1 else ""))
            )  # fmt: skip
    return problems


def _sink_problems(
    lanes: Mapping[str, LaneConfig],
    ensembles: Mapping[str, EnsembleConfig],
    sinks: Sequence[str],
    of_one: Callable[[str], Sequence[str]],
) -> list[tuple[str, str]]:
    named: list[tuple[str, str]] = [("sinks[{}]".format(i), uri) for i, uri in enumerate(sinks)]
    for kind, parts in (("models", lanes), ("ensembles", ensembles)):
        named += [
            ("{}.{}.sinks[{}]".format(kind, name, i), uri)
            for name, part in parts.items()
            for i, uri in enumerate(part.sinks)
        ]
    problems = []
    taken: dict[str, str] = {}
    for path, uri in named:
        if not path.startswith("sinks"):  # those are judged with the rest of the file
            problems += [(path, problem) for problem in of_one(uri)]
        place = _place(uri)
        if place and place in taken:
            problems.append(
                (path, "writes where {} writes already; each needs a place of its own".format(taken[place]))
            )
        elif place:
            taken[place] = path
    return problems


def _place(uri: str) -> str:
    """What two sinks may not share, "" where they may: a file, a folder, a line; standard output takes all."""
    kind, _, rest = uri.partition(":")
    target = rest.partition("?")[0]
    if kind not in _FILES or target in ("", "-"):
        return ""
    return ("gpio:" if kind == "gpio" else "") + posixpath.normpath(target)


def _line(fields: Fields, key: str) -> str:
    return fields.text(key, pattern=LINE, means="one line, and not empty")


def _said(part: Any) -> dict[str, Any]:
    """What a part says beyond its defaults, by key."""
    values = ((field.name, getattr(part, field.name), field.default) for field in fields(part))
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value, default in values
        if value != default
    }
