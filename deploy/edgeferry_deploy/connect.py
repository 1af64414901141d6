"""From what the user typed to an open transport: only the twin that is needed is imported."""

from __future__ import annotations

from pathlib import Path

from edgeferry_deploy.target import LocalTarget, Target, parse_target
from edgeferry_deploy.transport import Transport

__all__ = ["open_transport"]


def open_transport(target: str | Target, identity: str | Path | None = None) -> Transport:
    """A session with a target; use it as a context manager.

    Args:
        target: USER@HOST[:PORT], a Host of ~/.ssh/config, or local:DIR.
        identity: private key file for SSH; hosts in between use the keys their configuration names.

    Raises:
        TargetError: the target or the identity cannot be used.
        ConnectError, HostKeyError, AuthenticationError: there is no session.
    """
    parsed = parse_target(target) if isinstance(target, str) else target
    if isinstance(parsed, LocalTarget):
        from edgeferry_deploy.local import LocalTransport

        return LocalTransport(parsed.folder)
    from edgeferry_deploy.ssh import SshTransport

    return SshTransport(parsed, identity)
