"""run.json: what a board runs (source, models, sinks, and what looks on), read without trusting it.

Part of the contract: the workstation writes the file and the board reads it, both through this module.  It knows
neither numpy nor the sources and sinks themselves: what only a board can tell (is there such a camera?) is found
out there.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Mapping

from edgeferry_runtime.candidate_config import CandidateConfig
from edgeferry_runtime.drift_config import DriftConfig
from edgeferry_runtime.errors import ManifestError, UsageError
from edgeferry_runtime.fields import Fields, did_you_mean
from edgeferry_runtime.governor_config import GovernorConfig
from edgeferry_runtime.lanes_config import EnsembleConfig, LaneConfig, lanes_problems
from edgeferry_runtime.model_config import BACKENDS, LINE, ModelConfig
from edgeferry_runtime.recorder_config import RecorderConfig
from edgeferry_runtime.strict_json import parse_json
from edgeferry_runtime.view_config import ViewConfig

__all__ = [
    "BACKENDS", "MAX_BYTES", "NAME", "PIPELINED", "SCHEMA_VERSION", "SINKS", "SOURCES",
    "LoopConfig", "ModelConfig", "RunConfig", "from_table", "load",
]  # fmt: skip

NAME = "run.json"
SCHEMA_VERSION = 1
MAX_BYTES = 64 << 10  # one is some hundred bytes
PIPELINED = ("auto", "on", "off")
# The kinds of sources and sinks there are, as sources/ and sinks/ open them.
SOURCES = (
    "v4l2", "picamera2", "picamera", "rtsp", "rtsps", "http", "https", "folder", "stdin", "synthetic", "replay",
    "fault",
)  # fmt: skip
SINKS = ("jsonl", "csv", "mqtt", "mqtts", "webhook", "gpio", "annotate", "record")

_SWITCHES = ("governor", "recorder", "drift", "view")
_LONGEST_URI = 8192
# Sources that are not played from a file: cameras, @FILE, and all kinds but recordings.
_NOT_PLAYED = re.compile(r"@|/dev/|[0-9]+(\?|\Z)|(?!replay:)[a-z][a-z0-9+-]+:")
# A user and a password before a host; the second form is that of a password with "/", "?" or "#" in it.
_USER = re.compile(r"://(?:[^/?#]*@|[^/?#@\[\]]*:(?![0-9]*(?:[/?#]|\Z))[^@]*@)")
# An option that is a password; password_file= and token_file= are none.
_SECRET_OPTION = re.compile(
    r"[?&;#/_](?:password|passwd|passphrase|pass|pwd|token|access_token|auth_token|secret|api_?key)=",
    re.IGNORECASE,
)
_USER_IN_SOURCE = (
    "holds a user or a password, and this file is carried about; write the address into a file on the board that "
    "only its service may read, and name that one: @FILE"
)
_USER_IN_SINK = (
    "holds a user or a password, and this file is carried about; write the password into a file on the board: "
    "mqtt://HOST/TOPIC?username=NAME&password_file=FILE, webhook:URL#token_file=FILE"
)


@dataclass(frozen=True)
class LoopConfig:
    """Choices about the loop, as the command line has them.

    Attributes:
        fps: take at most so many frames a second.
        max_age_ms: skip frames that are older before they are run.
        motion: skip frames in which no more than this share of the picture changed, 0 to 1.
        pipelined: whether frames are read beside the interpreter: "on", "off", or "auto" where it pays.
        realtime: play a video file at its own rate.
    """

    fps: float | None = None
    max_age_ms: float | None = None
    motion: float | None = None
    pipelined: str = "auto"
    realtime: bool = False

    @classmethod
    def read(cls, fields: Fields) -> LoopConfig:
        """Read it, noting every problem in ``fields``."""
        return cls(
            fps=fields.optional("fps", lambda key: fields.number(key, above=0)),
            max_age_ms=fields.optional("max_age_ms", lambda key: fields.number(key, above=0)),
            motion=fields.optional("motion", fields.share),
            pipelined=fields.choice("pipelined", PIPELINED, "auto"),
            realtime=fields.boolean("realtime", False),
        )


@dataclass(frozen=True)
class RunConfig:
    """What a board runs.

    Attributes:
        source: where frames come from, as ``--source`` has it.
        sinks: where results go, as ``--sink`` has it; none is possible.  With several models, those of all.
        model: choices about the one model.
        models, ensembles: several models on one source, and ensembles among them, by name; none for the one.
        loop: choices about the loop.
        memory_mb: what several models may hold together, MiB; None for no limit.
        candidate: another version of the one model, tried beside it.
        governor, recorder, drift, view: each None where it is off.
    """

    source: str
    sinks: tuple[str, ...] = ()
    model: ModelConfig = ModelConfig()  # noqa: RUF009 - it is frozen
    loop: LoopConfig = LoopConfig()
    models: Mapping[str, LaneConfig] = field(default_factory=dict)
    ensembles: Mapping[str, EnsembleConfig] = field(default_factory=dict)
    memory_mb: float | None = None
    candidate: CandidateConfig | None = None
    governor: GovernorConfig | None = None
    recorder: RecorderConfig | None = None
    drift: DriftConfig | None = None
    view: ViewConfig | None = None

    @classmethod
    def read(cls, fields: Fields) -> RunConfig:
        """Read it, noting every problem in ``fields``; none repeats an address, which may hold a password."""
        fields.integer("schema_version", minimum=1, maximum=SCHEMA_VERSION)
        before = len(fields.problems)
        source = fields.text("source")
        if len(fields.problems) == before:
            for problem in _source_problems(source):
                fields.problem("source", problem)
        sinks = fields.optional("sinks", lambda key: fields.texts(key)) or ()
        for i, sink in enumerate(sinks):
            for problem in _sink_problems(sink):
                fields.problem("sinks[{}]".format(i), problem)
        loop = fields.optional_part("loop", LoopConfig.read) or LoopConfig()
        if loop.realtime and _NOT_PLAYED.match(source):
            fields.problem(
                "loop.realtime", "is for video files and recordings; in the file of @FILE write ?realtime=1"
            )
        one = fields.optional_part("model", ModelConfig.read)
        before = len(fields.problems)
        models = fields.optional("models", lambda key: fields.parts_by_name(key, LaneConfig.read)) or {}
        ensembles = fields.optional("ensembles", lambda key: fields.parts_by_name(key, EnsembleConfig.read)) or {}
        if len(fields.problems) == before:  # what they are together means something when each is well
            for path, problem in lanes_problems(models, ensembles, sinks, _sink_problems):
                fields.problem(path, problem)
        candidate = fields.optional_part("candidate", CandidateConfig.read)
        for key, part in (("model", one), ("candidate", candidate)):
            if models and part is not None:
                fields.problem(key, "is for one model, and `models` names several")
        return cls(
            source, sinks, one or ModelConfig(), loop, models, ensembles,
            memory_mb=fields.optional("memory_mb", lambda key: fields.number(key, above=0)),
            candidate=candidate,
            governor=fields.optional_part("governor", GovernorConfig.read),
            recorder=fields.optional_part("recorder", RecorderConfig.read),
            drift=fields.optional_part("drift", DriftConfig.read),
            view=fields.optional_part("view", ViewConfig.read),
        )  # fmt: skip

    @classmethod
    def parse(cls, data: bytes, name: str = NAME) -> RunConfig:
        """The config in a file's bytes.

        Args:
            data: strict JSON in UTF-8.
            name: of the file, for messages.

        Raises:
            UsageError: it is no config; every problem is named.
        """
        if len(data) > MAX_BYTES:
            raise UsageError("{}: is longer than {} bytes".format(name, MAX_BYTES), "Is it the right file?")
        try:
            table = parse_json(data, name)
        except ManifestError as error:  # its words are about bundles
            message = error.message.replace(" to be a manifest", "")
            raise UsageError(message, "Correct it, or push again to have it written anew.") from None
        return from_table(table, name)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; what is as it is by default is left out."""
        said = _said(self)
        # A part that is on by being there stays, with nothing in it.
        kept = {key: value for key, value in said.items() if value != {} or key in _SWITCHES}
        return dict({"schema_version": SCHEMA_VERSION}, **kept)

    def to_json(self) -> str:
        """The file's text, the same for equal configs."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"


def load(path: str) -> RunConfig:
    """The config in a file.

    Raises:
        UsageError: it cannot be read, or is no config; every problem is named.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(
            "{}: cannot be read: {}".format(path, error.strerror or error), "Check the path given with --config."
        ) from None
    return RunConfig.parse(data, path)


def from_table(table: Any, name: str = NAME) -> RunConfig:
    """The config in what was parsed, from JSON or from TOML.

    Raises:
        UsageError: it is no config; every problem is named with the file and the key.
    """
    version = table.get("schema_version") if isinstance(table, dict) else None
    if isinstance(version, int) and not isinstance(version, bool) and version > SCHEMA_VERSION:
        raise UsageError(
            "{}: has schema version {}, this edgeferry-runtime reads up to {}".format(
                name, version, SCHEMA_VERSION
            ),
            "Install a newer runtime: pip install --upgrade edgeferry-runtime",
        )
    fields = Fields(table)
    config = RunConfig.read(fields)
    problems = fields.finish()
    if problems:
        raise UsageError(
            "\n  ".join("{}: {}".format(name, problem) for problem in problems),
            "Correct it; docs/run-json.md lists every key.",
        )
    return config


def _said(part: Any) -> dict[str, Any]:
    """What a part says beyond its defaults, by key."""
    values = ((field.name, getattr(part, field.name), field.default) for field in fields(part))
    return {name: _plain(value) for name, value, default in values if value != default}


def _plain(value: Any) -> Any:
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if is_dataclass(value):
        return _said(value)
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, tuple) else value


def _source_problems(uri: str) -> list[str]:
    problems = _uri_problems(uri, _USER_IN_SOURCE)
    kind = re.match(r"([a-z][a-z0-9+-]+):", uri)  # two letters at least: C:\ is no kind
    if problems or uri.startswith("@") or not kind:
        return problems
    if kind.group(1) not in SOURCES:
        return ["is no kind of source{}".format(did_you_mean(kind.group(1), SOURCES))]
    if re.match(r"(fault:.*:)?stdin:", uri):
        return ["is stdin, and a service has no standard input; name a camera, a stream or a file"]
    return []


def _sink_problems(uri: str) -> list[str]:
    problems = _uri_problems(uri, _USER_IN_SINK)
    kind, _, rest = uri.partition(":")
    if problems or (kind in SINKS and rest):
        return problems
    return [
        "is no sink{}; sinks are {}".format(did_you_mean(kind, SINKS), ", ".join(name + ":" for name in SINKS))
    ]


def _uri_problems(uri: str, secret: str) -> list[str]:
    """What is wrong with any uri; shows nothing of it."""
    if not 0 < len(uri) <= _LONGEST_URI or not LINE.match(uri) or uri != uri.strip():
        return ["must be one line of 1 to {} characters, without space around it".format(_LONGEST_URI)]
    if _USER.search(uri) or _SECRET_OPTION.search(uri):
        return [secret]
    return []
