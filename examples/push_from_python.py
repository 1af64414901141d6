"""Push a bundle from a program, as a build job would.

python examples/push_from_python.py digits.ferry pi@raspberrypi.local
"""

from __future__ import annotations

import sys

from edgeferry_deploy.connect import open_transport
from edgeferry_deploy.push import push


def main(bundle: str, target: str, identity: str | None = None) -> None:
    with open_transport(target, identity) as transport:
        result = push(bundle, transport)
    print(f"{result.release} is current, {result.blobs_sent} of {result.blobs_total} files sent")
    for output in result.check.outputs:
        print(f"  {output.name}: {output.max_abs:.3g} off, {output.max_abs_tolerance:.3g} allowed")


if __name__ == "__main__":
    main(*sys.argv[1:])
