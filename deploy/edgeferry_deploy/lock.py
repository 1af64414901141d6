"""`edgeferry lock`, and the lease that every command which changes a device holds: it ends by itself."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from edgeferry_deploy import upkeep
from edgeferry_deploy.activation import audit_line
from edgeferry_deploy.console import Console
from edgeferry_deploy.errors import DeployError, LockedError, TargetError
from edgeferry_deploy.owner import HELD, Holder, owner_json
from edgeferry_deploy.survey import look, reply_lines
from edgeferry_deploy.target import DEFAULT_ROOT, check_root
from edgeferry_deploy.transport import Transport, checked, reply_error

if TYPE_CHECKING:
    from argparse import Namespace

__all__ = ["LEASE_SECONDS", "Lease", "hold", "holder", "release", "run"]

LEASE_SECONDS = 60  # what a workstation that vanished blocks others for
RENEW_SECONDS = 15.0


class Lease:
    """A lease that is held, and renewed in the background while the workstation lives.

    Attributes:
        token: names it; the scripts that commit compare it.
        given: the device has ended it already.
        lost: why it could not be renewed; None while it could.
    """

    def __init__(self, transport: Transport, root: str, token: str) -> None:
        self.token = token
        self.given = False
        self.lost: DeployError | None = None
        self._transport, self._root = transport, root
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    def _renew(self) -> None:
        while not self._done.wait(RENEW_SECONDS):
            try:
                checked(
                    self._transport, upkeep.renew(self._root, self.token, LEASE_SECONDS), None, RENEW_SECONDS * 2
                )
            except DeployError as error:
                self.lost = error
                return

    def check(self) -> None:
        """Go on only as the owner.

        Raises:
            LockedError: the lease could not be renewed, or somebody ended it.
        """
        if self.lost is not None:
            raise LockedError(
                f"the lock of {self._transport.name} was lost meanwhile: {self.lost.message}",
                "nothing was switched; see `edgeferry lock TARGET status`, then run the command again",
            )

    def settle(self) -> None:
        """Stop renewing, before the command that ends the lease: a renewal under way could bring it back.

        Raises:
            LockedError: as `check`.
        """
        self._done.set()
        self._thread.join(RENEW_SECONDS * 3)
        self.check()

    def end(self) -> None:
        """Give it back unless the device has done so; a dead link is left to the deadline."""
        with suppress(DeployError):
            self.settle()
            if not self.given:
                self._transport.run(upkeep.give(self._root, self.token), None, RENEW_SECONDS)


@contextmanager
def hold(transport: Transport, root: str, reason: str, *, expected: str) -> Iterator[Lease]:
    """Keep everybody else from changing a device.

    A lease whose owner was a process of this system that has ended is taken over.

    Args:
        root: absolute path on the device.
        reason: what for, in the words of a command.
        expected: the release that must still be current, or ''.

    Raises:
        LockedError: somebody else holds it; says who, why, since when and how long yet.
        CommandError: the device could not write, or somebody switched since it was looked at.
    """
    token = secrets.token_hex(8)
    HELD.add(token)
    try:
        found = take(transport, root, token, reason, "", expected)
        if found is not None and found.gone():
            found = take(transport, root, token, reason, found.token, expected)
        if found is not None:
            raise locked(transport, root, reason, found)
        lease = Lease(transport, root, token)
        try:
            yield lease
        finally:
            lease.end()
    finally:
        HELD.discard(token)


def take(transport: Transport, root: str, token: str, reason: str, over: str, expected: str) -> Holder | None:
    """Try to take the lease; who holds it when it is not free."""
    argv = upkeep.take(root, token, LEASE_SECONDS, owner_json(reason), over, expected)
    done = checked(transport, argv)
    try:
        lines = {words[0]: words[1:] for words in reply_lines(done.stdout, "edgeferry-lease 1")}
        if lines.get("state") not in (["held"], ["taken"]):
            raise ValueError("does not say whether the lock was taken")
    except ValueError as error:
        raise reply_error(argv, transport.name, done.stdout, str(error)) from None
    return None if lines["state"] == ["taken"] else Holder.parse(lines.get("lease", []))


def locked(transport: Transport, root: str, reason: str, found: Holder) -> LockedError:
    """The refusal of a command that came second."""
    where = "" if root.endswith(DEFAULT_ROOT[1:]) else f" --root {root}"
    return LockedError(
        f"cannot {reason} on {transport.name}: it is locked by {found}",
        f"wait: it ends by itself within {found.left} s once its owner stops; when that one is stuck: "
        f"edgeferry lock {transport.name} release --force{where}",
        holder=found,
    )


def holder(transport: Transport, *, root: str = DEFAULT_ROOT) -> Holder | None:
    """Who holds a device; None when it is free. One round trip, nothing written."""
    return look(transport, check_root(root)).holder


def release(transport: Transport, *, root: str = DEFAULT_ROOT, reason: str = "") -> Holder | None:
    """End whoever's lease it is; that run is refused at its next step.

    Returns:
        The one whose lease was ended; None when the device was free.
    """
    survey = look(transport, check_root(root))
    if survey.holder is None:
        return None
    line = audit_line("unlock", "", survey.current, f"forced: was {survey.holder.by}", reason)
    argv = upkeep.give(survey.root, "", line)
    done = checked(transport, argv)
    try:
        lines = {words[0]: words[1:] for words in reply_lines(done.stdout, "edgeferry-lease 1")}
    except ValueError as error:
        raise reply_error(argv, transport.name, done.stdout, str(error)) from None
    return Holder.parse(lines["lease"]) if "lease" in lines else None


def run(arguments: Namespace) -> int:
    """The command."""
    from edgeferry_deploy.connect import open_transport

    ending = arguments.action == "release"
    if ending and not arguments.force:
        raise TargetError(
            "release ends somebody else's run: that needs --force",
            f"see who it is first: edgeferry lock {arguments.target} status",
        )
    console = Console(quiet=arguments.json)
    with open_transport(arguments.target, arguments.identity) as transport:
        found = (release if ending else holder)(transport, root=arguments.root)
        name = transport.name
    if found is None:
        console.step(f"{name} is not locked", "none")
    else:
        console.step(f"{name} {'was' if ending else 'is'} locked by {found}", "warn")
    if ending and found is not None:
        console.step("released")
    if arguments.json:
        shown: dict[str, Any] = {"device": name, "locked": found is not None and not ending}
        console.result({**shown, "holder": found and found.to_dict(), "released": ending and found is not None})
    return 0
