"""What a push will do, decided before anything is written; and that plan shown as a difference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from shlex import quote
from typing import Any

from edgeferry_deploy.console import size_text
from edgeferry_deploy.environment import Environment
from edgeferry_deploy.errors import DeviceUnfitError
from edgeferry_deploy.release import Blob, Record, Stale, stale
from edgeferry_deploy.survey import Survey
from edgeferry_deploy.transfer import SMALL, Upload, plan_uploads

__all__ = ["KEEP", "Plan", "Preview", "plan_push", "require_space"]

KEEP = 3
SPARE_KIB = 4096  # for folders, links, release.json and the log
PAYLOAD = 0.9  # of a file's bytes: the largest packed form that lies beside the file while it is rebuilt


@dataclass(frozen=True)
class Plan:
    """What a push will do; made from a survey, before anything is written.

    Attributes:
        record: what release.json will say, but for the check.
        environment: what runs the release.
        new_env: the environment is not there yet, or not whole.
        before: the release that is current now.
        uploads: content that has to be sent.
        corrupt: members whose blob on the device has other bytes than its name says.
        assemble: the release or its env is not there yet.
        created: the release is new, so that a failed check may remove it.
        repair: blobs whose member in the existing release is missing or altered.
        switch: the release is not current yet.
        stale: what may go after the switch.
    """

    record: Record
    environment: Environment
    new_env: bool
    release: str
    before: str
    uploads: tuple[Upload, ...]
    corrupt: tuple[str, ...]
    assemble: bool
    created: bool
    repair: tuple[Blob, ...]
    switch: bool
    stale: Stale

    @property
    def writes(self) -> bool:
        """Whether the device is changed at all."""
        return bool(self.uploads or self.assemble or self.repair or self.switch)

    @property
    def space(self) -> int:
        """Bytes the device needs: what is sent, packed forms beside the files, and the new environment."""
        sent = sum(upload.size for upload in self.uploads)
        packed = sum(upload.size for upload in self.uploads if upload.size > SMALL and not upload.blob.path)
        return sent + int(PAYLOAD * packed) + (self.environment.unpacked if self.new_env else 0)


@dataclass(frozen=True)
class Preview:
    """A plan as `push --dry-run` shows it.

    Attributes:
        device: its name.
        plan: what would happen.
        survey: what the device has.
        config: what becomes of its run.json: "new", "changed", or "" when it stays.
        restarts: whether a service is started anew, on trial.
    """

    device: str
    plan: Plan
    survey: Survey
    config: str = ""
    restarts: bool = False

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        plan, survey = self.plan, self.survey
        gone = [name for name in plan.stale.releases if name in survey.releases]
        return {
            "dry_run": True,
            "device": self.device,
            "root": survey.root,
            "release": plan.release,
            "current": {"before": plan.before, "after": plan.release},
            "previous": {"before": survey.previous, "after": self.previous},
            "switch": plan.switch,
            "writes": plan.writes or bool(self.config),
            "run_json": self.config,
            "service_restarts": self.restarts,
            "on_trial": survey.trial,
            "new_release": plan.release not in survey.releases,
            "new_env": plan.record.env if plan.new_env else "",
            "env": {
                "name": plan.record.env,
                "python": plan.record.python,
                "packages": list(plan.environment.packages),
                "notes": list(plan.environment.notes),
            },
            "space_bytes": plan.space,
            "send": [
                {"member": name(upload.blob), "bytes": upload.size, "of": upload.blob.size}
                for upload in plan.uploads
            ],
            "bytes": sum(upload.size for upload in plan.uploads),
            "damaged": list(plan.corrupt),
            "repair": [blob.member for blob in plan.repair],
            "prune": {
                "releases": gone if plan.switch else [],
                "envs": [env for env in plan.stale.envs if env in survey.envs] if plan.switch else [],
            },
            "locked_by": survey.holder and survey.holder.to_dict(),
        }

    @property
    def previous(self) -> str:
        """The release a rollback would go to after the push."""
        return self.plan.before if self.plan.before != self.plan.release else self.survey.previous

    def lines(self) -> list[str]:
        """For a reader: + is new, - goes, ~ changes; then what it costs."""
        found = self.to_dict()
        lines = [f"{self.device}  {found['root']}"]
        for link in ("current", "previous"):
            before, after = found[link]["before"] or "nothing", found[link]["after"] or "nothing"
            if before != after:
                lines.append(f"~ {link}  {before} -> {after}")
        lines += [f"+ release  {found['release']}"] if found["new_release"] else []
        if found["new_env"]:
            made_of = ", ".join(found["env"]["packages"]) or f"the packages of {found['env']['python']}"
            lines.append(f"+ env  {found['new_env']}  {made_of}")
        for sent in found["send"]:
            rest = f", the rest of {size_text(sent['of'])}" if sent["bytes"] < sent["of"] else ""
            lines.append(f"+ {sent['member']}  {size_text(sent['bytes'])}{rest}")
        lines += [f"~ {member}  damaged on the device, linked again" for member in found["repair"]]
        for kind in ("releases", "envs"):
            lines += [f"- {kind[:-1]}  {gone}" for gone in found["prune"][kind]]
        lines += [f"~ run.json  {self.config}"] if self.config else []
        lines += ["~ service  started anew, on trial until it held"] if self.restarts else []
        if survey_trial := found["on_trial"]:
            lines.append(f"- trial  {survey_trial} was never proven: it would be taken back first")
        if not found["writes"]:
            lines.append("nothing would change; it would be checked again")
        else:
            lines.append(f"{len(found['send'])} files to send, {size_text(found['bytes'])}; nothing was written")
        if self.survey.holder:
            lines.append(f"! locked by {self.survey.holder}")
        return lines


def name(blob: Blob) -> str:
    """What a reader calls a blob."""
    return "the runtime" if blob.member == "-" else blob.member


def plan_push(
    survey: Survey, record: Record, release: str, blobs: Sequence[Blob], environment: Environment, keep: int = KEEP
) -> Plan:
    """Decide what has to happen, from what the device has.

    Args:
        record: what release.json will say, but for the check.
        release: id of the release the blobs make up.
        environment: what is to run it.
        keep: releases that stay on the device.
    """
    known = survey.releases.get(release)
    new, new_env = release not in survey.releases, not survey.envs.get(record.env)
    damaged = set(survey.damaged)
    needed = [*(blobs if new or damaged else ()), *(environment.blobs if new_env else ())]
    return Plan(
        record=record,
        environment=environment,
        new_env=new_env,
        release=release,
        before=survey.current,
        uploads=plan_uploads(needed, survey.blobs, survey.parts),
        corrupt=tuple(blob.member for blob in needed if survey.blobs.get(blob.sha256) is False),
        assemble=new or new_env,
        # A release without a record was assembled by a push that was cut: it was never switched to.
        created=known is None,
        repair=tuple(blob for blob in blobs if blob.member in damaged),
        switch=survey.current != release or known is None or known.env != record.env,
        stale=stale(
            {**survey.releases, release: record},
            [*survey.envs, record.env],
            (release, survey.current if survey.current != release else survey.previous),
            keep,
        ),
    )


def require_space(survey: Survey, plan: Plan, device: str) -> None:
    """Refuse before anything is written when the release and its environment do not fit.

    Raises:
        DeviceUnfitError: the root's obstacle or the missing space, in words.
    """
    if survey.obstacle:
        raise DeviceUnfitError(
            f"{survey.root} on {device} cannot be written: {survey.obstacle} is not writable for this user",
            f'on the device: sudo install -d -o "$USER" {quote(survey.root)}; or choose another --root',
        )
    needed = plan.space // 1024 + SPARE_KIB
    if survey.free_kib is not None and survey.free_kib < needed:
        raise DeviceUnfitError(
            f"{device} has {size_text(survey.free_kib * 1024)} free for {survey.root}, "
            f"this push needs {size_text(needed * 1024)}",
            "free some space on the device, or choose another --root",
        )
