"""``python -m edgeferry_runtime``: the same as ``edgeferry-run``."""

from edgeferry_runtime.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
