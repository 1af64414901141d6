"""What a bundle holds, and whether it is whole.

python examples/look_into_bundle.py digits.ferry
"""

from __future__ import annotations

import sys

from edgeferry_runtime.bundle import Bundle


def main(path: str) -> None:
    with Bundle.open(path) as bundle:
        bundle.verify()
        print(f"{bundle.manifest.name} {bundle.manifest.version}")
        for name, entry in sorted(bundle.manifest.files.items()):
            print(f"{entry.size:10,}  {entry.sha256[:12]}  {name}")
        gate = bundle.manifest.provenance["gate"]
        print(f"judged by {gate['metric']}, on {gate['frames']} samples")
        for variant, figures in gate["variants"].items():
            known = [name for name in ("metric", "agreement", "rms_error") if figures[name] is not None]
            print(f"{variant}: " + ", ".join(f"{name} {figures[name]:.4g}" for name in known))


if __name__ == "__main__":
    main(*sys.argv[1:])
