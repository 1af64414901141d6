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
TARGET = (
    "target",
    {
        "metavar": "TARGET",
        "help": "USER@HOST[:PORT], a Host of ~/.ssh/config, or local:DIR for a folder on this machine",
    },
)
CHECK = (
    "--check-seconds",
    {
        "metavar": "SECONDS",
        "type": "seconds",
        "default": 300,
        "help": "how long the device may take for its self-check (default: %(default)s)",
    },
)
PYTHON = (
    "--python",
    {
        "metavar": "PATH",
        "default": "",
        "help": "the device's Python (default: ROOT/venv/bin/python3, then python3)",
    },
)
HEALTH = (
    (
        "--health-seconds",
        {
            "metavar": "SECONDS",
            "type": "seconds",
            "default": 15,
            "help": "how long its service must hold before a release is kept (default: %(default)s)",
        },
    ),
    (
        "--start-seconds",
        {
            "metavar": "SECONDS",
            "type": "seconds",
            "default": 120,
            "help": "how long its first result may take (default: %(default)s)",
        },
    ),
    (
        "--max-age-ms",
        {
            "metavar": "MS",
            "type": "age",
            "default": 0,
            "help": "median age its results may have (default: any)",
        },
    ),
)
ENVIRONMENT = (
    (
        "--env",
        {
            "choices": ("auto", "wheels", "board"),
            "default": "auto",
            "help": "what runs it: wheels from here, the board's own packages, or wheels where it lacks them",
        },
    ),
    (
        "--offline",
        {"metavar": "DIR", "default": "", "help": "take wheels from a folder of `edgeferry wheelhouse`"},
    ),
)
CONFIG = (
    "--config",
    {"metavar": "FILE", "default": "", "help": "what to run there, a run.toml; else what the board has"},
)
SERVICE = (
    "--service",
    {
        "choices": ("auto", "system", "user", "supervised", "none"),
        "default": "auto",
        "help": "who keeps it running: systemd, the user's systemd, edgeferry itself; none: only switch",
    },
)
REASON = ("--reason", {"metavar": "TEXT", "default": "", "help": "why, for the device's history"})

# verb -> (module with run(arguments) -> exit code, summary, arguments)
VERBS = {
    "push": (
        "edgeferry_deploy.push",
        "carry a bundle to a board, prove it there, make it current",
        (
            ("bundle", {"metavar": "BUNDLE", "help": "NAME.ferry, or a folder with the same members"}),
            ("targets", {**TARGET[1], "nargs": "+", "help": f"{TARGET[1]['help']}; several at once"}),
            ROOT,
            IDENTITY,
            PYTHON,
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
            *ENVIRONMENT,
            CONFIG,
            SERVICE,
            *HEALTH,
            ("--any-arch", {"action": "store_true", "help": "also send what was made for another architecture"}),
            ("--dry-run", {"action": "store_true", "help": "show what would change, write nothing"}),
            REASON,
            JSON,
        ),
    ),
    "up": (
        "edgeferry_deploy.up",
        "from a model and a board to a running service, in one command",
        (
            ("model", {"metavar": "MODEL", "help": "what `edgeferry convert` takes"}),
            TARGET,
            (
                "--data",
                {"metavar": "DATA", "required": True, "help": "pictures, as `edgeferry convert` takes them"},
            ),
            (
                "--profile",
                {"metavar": "NAME", "default": "", "help": "the board's kind (default: told by the board)"},
            ),
            ("--labels", {"metavar": "FILE", "default": "", "help": "as for convert"}),
            ("--preprocess", {"metavar": "PRESET", "default": "", "help": "as for convert"}),
            ("--task", {"metavar": "TASK", "default": "", "help": "as for convert"}),
            ("--quantize", {"metavar": "SCHEMES", "default": "", "help": "as for convert"}),
            ("--max-drop", {"metavar": "X", "default": "", "help": "as for convert"}),
            (
                "--output",
                {"metavar": "FILE", "default": "", "help": "the bundle (default: the model's name with .ferry)"},
            ),
            ROOT,
            IDENTITY,
            PYTHON,
            CHECK,
            CONFIG,
            SERVICE,
            *HEALTH,
            ("--any-arch", {"action": "store_true", "help": "also send what was made for another architecture"}),
            REASON,
            JSON,
        ),
    ),
    "config": (
        "edgeferry_deploy.config",
        "say what a board runs, or ask it",
        (
            ("action", {"choices": ("push", "pull"), "help": "send a run.toml, or fetch what the board has"}),
            TARGET,
            (
                "file",
                {
                    "metavar": "FILE",
                    "nargs": "?",
                    "default": "",
                    "help": "the run.toml (pull: default is to print)",
                },
            ),
            ROOT,
            IDENTITY,
            SERVICE,
            *HEALTH,
            REASON,
            JSON,
        ),
    ),
    "rollback": (
        "edgeferry_deploy.rollback",
        "go back to the release before, after checking it again",
        (
            TARGET,
            (
                "release",
                {
                    "metavar": "RELEASE",
                    "nargs": "?",
                    "default": "",
                    "help": "one that the device keeps, or the beginning of its name (default: the one before)",
                },
            ),
            ROOT,
            IDENTITY,
            CHECK,
            *HEALTH,
            REASON,
            JSON,
        ),
    ),
    "logs": (
        "edgeferry_deploy.logs",
        "show what the service on a board printed",
        (
            TARGET,
            ("-f", {"dest": "follow", "action": "store_true", "help": "go on with what comes, until Ctrl-C"}),
            (
                "--lines",
                {
                    "metavar": "N",
                    "type": "lines",
                    "default": 100,
                    "help": "how many of the last lines (default: %(default)s)",
                },
            ),
            ROOT,
            IDENTITY,
            ("--json", {"action": "store_true", "help": "print one JSON object a line"}),
        ),
    ),
    "run": (
        "edgeferry_deploy.device_run",
        "run edgeferry-run of a board's current release there, and watch it",
        (
            TARGET,
            (
                "rest",
                {
                    "metavar": "-- COMMAND",
                    "nargs": "*",
                    "help": "a command of edgeferry-run; --bundle is the current release by default",
                },
            ),
            ROOT,
            IDENTITY,
        ),
    ),
    "bench": (
        "edgeferry_deploy.device_bench",
        "measure the current release on a board, and compare with the last time",
        (
            TARGET,
            (
                "--seconds",
                {"metavar": "S", "type": "seconds", "default": 10, "help": "how long (default: %(default)s)"},
            ),
            (
                "--source",
                {
                    "metavar": "SOURCE",
                    "default": "synthetic:1280x720",
                    "help": "the frames, as edgeferry-run takes them (default: %(default)s)",
                },
            ),
            ("--any-arch", {"action": "store_true", "help": "also run what was made for another architecture"}),
            ("--output", {"metavar": "FILE", "default": "", "help": "write the figures to this file as well"}),
            ROOT,
            IDENTITY,
            JSON,
        ),
    ),
    "shell": ("edgeferry_deploy.shell", "open a terminal on a board", (TARGET, IDENTITY)),
    "history": (
        "edgeferry_deploy.history",
        "show what was done to a board, when, by whom and why",
        (TARGET, ROOT, IDENTITY, JSON),
    ),
    "lock": (
        "edgeferry_deploy.lock",
        "see who is changing a board, or end that",
        (
            TARGET,
            ("action", {"choices": ("status", "release"), "help": "show who holds the lock, or end it"}),
            ROOT,
            IDENTITY,
            ("--force", {"action": "store_true", "help": "end the lock though its owner may still be at work"}),
            JSON,
        ),
    ),
    "remove": (
        "edgeferry_deploy.remove",
        "take edgeferry off a board with everything it put there",
        (TARGET, ROOT, IDENTITY, ("--yes", {"action": "store_true", "help": "do not ask"}), JSON),
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
    "probe": (
        "edgeferry_deploy.probe",
        "show what a board is and has, in one round trip",
        (
            TARGET,
            ROOT,
            IDENTITY,
            ("--write-profile", {"metavar": "FILE", "default": "", "help": "draft a device profile, NAME.toml"}),
            JSON,
        ),
    ),
    "doctor": (
        "edgeferry_deploy.doctor",
        "find what stands in a board's way, and the remedies",
        (
            TARGET,
            (
                "--bundle",
                {"metavar": "BUNDLE", "default": "", "help": "compare with what this bundle needs as well"},
            ),
            ROOT,
            IDENTITY,
            JSON,
        ),
    ),
    "wheelhouse": (
        "edgeferry_deploy.wheelhouse",
        "put a bundle and all its board needs into a folder, for a USB stick",
        (
            ("bundle", {"metavar": "BUNDLE", "help": "NAME.ferry, or a folder with the same members"}),
            (
                "--for",
                {
                    "dest": "profile",
                    "metavar": "PROFILE",
                    "default": "",
                    "help": "a device profile's file (default: the profile the bundle was made for)",
                },
            ),
            ("--arch", {"metavar": "ARCH", "default": "", "help": "the board's: aarch64, armv7l or x86_64"}),
            ("--python", {"metavar": "3.N", "default": "", "help": "the version of the board's Python"}),
            (
                "--glibc",
                {"metavar": "2.N", "default": "", "help": "the board's C library (default: the profile's oldest)"},
            ),
            (
                "--output",
                {
                    "metavar": "DIR",
                    "default": "edgeferry-wheelhouse",
                    "help": "folder to make (default: %(default)s)",
                },
            ),
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
    "recipes": ("edgeferry-converter", "list ways to make a model smaller before it is quantised"),
    "sweep": ("edgeferry-converter", "search recipes for the ones that pay, and show what each costs"),
}
