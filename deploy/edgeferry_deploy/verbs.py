"""The verbs of `edgeferry` and their arguments as data: help needs no other module than this and argparse."""

from __future__ import annotations

__all__ = ["ELSEWHERE", "VERBS"]

ROOT = (
    "--root",
    {
        "metavar": "DIR",
        "default": "~/.local/share/edgeferry",
        "help": "edgeferry's folder on the device (default: %(default)s)",
    },
)
IDENTITY = (
    "--identity",
    {"metavar": "FILE", "help": "private key to log in with (default: the agent's keys, then ~/.ssh/id_*)"},
)
JSON = ("--json", {"action": "store_true", "help": "print one JSON object instead of text"})
TARGET = ("target", {"metavar": "TARGET", "help": "USER@HOST[:PORT], or local:DIR for a folder on this machine"})
CHECK = (
    "--check-seconds",
    {
        "metavar": "SECONDS",
        "type": "seconds",
        "default": 300,
        "help": "how long the device may take for its self-check (default: %(default)s)",
    },
)

# verb -> (module with run(arguments) -> exit code, summary, arguments)
VERBS = {
    "push": (
        "edgeferry_deploy.push",
        "carry a bundle to a board, prove it there, make it current",
        (
            ("bundle", {"metavar": "BUNDLE", "help": "NAME.ferry, or a folder with the same members"}),
            TARGET,
            ROOT,
            IDENTITY,
            (
                "--python",
                {
                    "metavar": "PATH",
                    "default": "",
                    "help": "the device's Python (default: ROOT/venv/bin/python3, then python3)",
                },
            ),
            (
                "--keep",
                {
                    "metavar": "N",
                    "type": "keep",
                    "default": 3,
                    "help": "releases that stay on the device, at least 2 (default: %(default)s)",
                },
            ),
            CHECK,
            JSON,
        ),
    ),
    "rollback": (
        "edgeferry_deploy.rollback",
        "go back to the release before, after checking it again",
        (TARGET, ROOT, IDENTITY, CHECK, JSON),
    ),
    "status": ("edgeferry_deploy.status", "show what a board has", (TARGET, ROOT, IDENTITY, JSON)),
    "demo": (
        "edgeferry_deploy.demo",
        "the whole way on this machine, without a board: convert, push over SSH, run on video",
        (
            (
                "--output",
                {
                    "metavar": "DIR",
                    "default": "edgeferry-demo",
                    "help": "folder for its files (default: %(default)s)",
                },
            ),
            JSON,
        ),
    ),
    "enrol": (
        "edgeferry_deploy.enrol",
        "trust a board's host key",
        (
            TARGET,
            ("--fingerprint", {"metavar": "SHA256:...", "default": "", "help": "trust the key if it is this one"}),
            ("--yes", {"action": "store_true", "help": "trust whatever key it shows, without asking"}),
            ("--replace", {"action": "store_true", "help": "forget the key that is trusted now"}),
            JSON,
        ),
    ),
}

# verb -> (distribution that brings it, summary): listed without asking the slow package metadata.
ELSEWHERE = {
    "convert": ("edgeferry-converter", "turn a Keras model into a bundle for one kind of board"),
    "inspect": ("edgeferry-converter", "show what a model file or a bundle holds"),
    "lint": ("edgeferry-converter", "look for faults in calibration data"),
    "profiles": ("edgeferry-converter", "list the boards a model can be converted for"),
}
