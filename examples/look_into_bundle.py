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
        for variant, figures in bundle.manifest.provenance["gate"]["variants"].items():
            print(f"{variant}: accuracy {figures['accuracy']:.1%}, agreement {figures['agreement']:.1%}")


if __name__ == "__main__":
    main(*sys.argv[1:])
