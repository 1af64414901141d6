"""`python -m edgeferry_deploy` is `edgeferry`."""

from edgeferry_deploy.cli import main

raise SystemExit(main())
