"""Root file systems of arm64 Debian as an installer leaves them: built once, cached as a tar, unpacked fresh."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Suite:
    """A Debian that a Raspberry Pi OS is built on.

    Attributes:
        python: the version it has.
        cpu: what programs are shown.  Shown the newest processor there is, as qemu-user does by default, XNNPACK
            of LiteRT 2.1.6 takes kernels that answer wrongly under qemu-user 7.2.
        no_credentials: what takes credentials from every unit: qemu-user answers the mount behind them with
            "Invalid argument", and nothing of ours uses them.
    """

    python: str
    cpu: str
    no_credentials: str


RESET = "LoadCredential=\nSetCredential=\n"
SUITES = {
    "bookworm": Suite("3.11", "cortex-a72", RESET),  # as a Raspberry Pi 4
    "trixie": Suite("3.13", "cortex-a76", RESET + "ImportCredential=\n"),  # as a Raspberry Pi 5
}

# `mmdebstrap --variant=extract` takes what is named and what that needs; no maintainer script runs.  Python is
# bare, without pip and venv; libstdc++6, zlib1g and libexpat1 are what wheels load.
PACKAGES = (
    *("base-files", "base-passwd", "bash", "coreutils", "dash", "debianutils", "diffutils", "findutils", "grep"),
    *(
        "gzip",
        "hostname",
        "libc-bin",
        "login",
        "mawk",
        "mount",
        "ncurses-bin",
        "passwd",
        "sed",
        "tar",
        "util-linux",
    ),
    *("systemd", "systemd-sysv", "dbus", "libpam-systemd", "openssh-server", "sudo", "procps", "iproute2", "kmod"),
    *("python3", "python3-minimal", "libpython3-stdlib", "libstdc++6", "zlib1g", "libexpat1"),
)

# name -> (uid, groups, sudo without a password, lingering): the installer's first user, and one without any right.
USERS = {
    "pi": (1000, ("adm", "dialout", "sudo", "audio", "video", "plugdev", "users"), True, False),
    "plain": (1001, ("video", "users"), False, True),
}
SYSTEM_USERS = {"messagebus": 100, "sshd": 101, "systemd-network": 998}
SYSTEM_GROUPS = {"messagebus": 110, "_ssh": 111, "systemd-journal": 112, "input": 113, "render": 114, "kvm": 115}

# What pam-auth-update writes on a real installation.
PAM = {
    "common-auth": "auth sufficient pam_unix.so nullok\nauth required pam_deny.so\n",
    "common-account": "account required pam_unix.so\n",
    "common-password": "password required pam_unix.so yescrypt\n",
    "common-session": "session required pam_unix.so\nsession optional pam_systemd.so\n",
    "common-session-noninteractive": "session required pam_unix.so\n",
}
FILES = {
    "etc/hostname": "{suite}-board\n",
    "etc/hosts": "127.0.0.1 localhost\n127.0.1.1 {suite}-board\n",
    # Not empty: systemd would take this for a first boot and enable every unit's preset.
    "etc/machine-id": "0123456789abcdef0123456789abcdef\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files\n",
    "etc/ssh/sshd_config": "PermitRootLogin no\nPasswordAuthentication no\nUsePAM yes\nPrintMotd no\n"
    "AcceptEnv LANG LC_*\nSubsystem sftp /usr/lib/openssh/sftp-server\n",
    "etc/sudoers.d/010_pi-nopasswd": "pi ALL=(ALL) NOPASSWD: ALL\n",
    "etc/default/locale": "LANG=C.UTF-8\n",
    "etc/fstab": "",
    # Every program is emulated by a process of its own, which reads this: from a login, and from either manager.
    "etc/environment": "QEMU_CPU={cpu}\n",
    "etc/systemd/system.conf.d/lab.conf": "[Manager]\nDefaultEnvironment=QEMU_CPU={cpu}\n",
    "etc/systemd/user.conf.d/lab.conf": "[Manager]\nDefaultEnvironment=QEMU_CPU={cpu}\n",
    "etc/systemd/system/service.d/lab.conf": "[Service]\n{no_credentials}",
    # These two mount a /proc of their own, where a container shows the boot id of its host; a board has only one.
    "etc/systemd/system/edgeferry.service.d/lab.conf": "[Service]\nProtectKernelTunables=no\n"
    "ProtectControlGroups=no\n",
}
LINKS = {
    "etc/systemd/system/multi-user.target.wants/ssh.service": "/lib/systemd/system/ssh.service",
    "etc/systemd/system/default.target": "/lib/systemd/system/multi-user.target",
    "usr/bin/awk": "mawk",
    "etc/localtime": "/usr/share/zoneinfo/Etc/UTC",
}
# Nobody looks at a console, and emulated they take seconds of every boot.
MASKED = ("console-getty.service", "getty.target", "systemd-update-utmp.service", "systemd-firstboot.service")


def cache_folder() -> Path:
    """Where root file systems are kept: ``EDGEFERRY_LAB_CACHE``, else below ``~/.cache``."""
    return Path(os.environ.get("EDGEFERRY_LAB_CACHE") or Path.home() / ".cache" / "edgeferry-lab")


def cached_tar(suite: str) -> Path:
    """The suite's packages unpacked, as a tar; built when these packages were not built before (10-150 s)."""
    key = hashlib.sha256("\n".join((suite, *PACKAGES)).encode()).hexdigest()[:12]
    tar = cache_folder() / f"{suite}-arm64-{key}.tar"
    if not tar.exists():
        tar.parent.mkdir(parents=True, exist_ok=True)
        part = tar.with_name(f"{os.getpid()}-{tar.name}")  # mmdebstrap knows the format by the ending
        hooks = "/usr/share/mmdebstrap/hooks/merged-usr"
        try:
            subprocess.run(
                ["mmdebstrap", "--quiet", "--variant=extract", "--architectures=arm64", f"--hook-dir={hooks}",
                 f"--include={','.join(PACKAGES)}", suite, part],
                check=True, stdout=subprocess.DEVNULL,
            )  # fmt: skip
            part.rename(tar)
        finally:
            part.unlink(missing_ok=True)
    return tar


def unpack(suite: str, root: Path) -> Path:
    """A root file system of the suite at ``root``, with nothing configured."""
    tar = cached_tar(suite)
    root.mkdir(parents=True)
    subprocess.run(["tar", "--extract", "--file", tar, "--directory", root, "--numeric-owner"], check=True)
    return root


def fresh_root(suite: str, root: Path, authorized_key: str) -> Path:
    """What a board boots right after its installer: users, keys and services, no edgeferry.

    Args:
        suite: one of SUITES.
        root: folder to make; its parents let nobody else in, as it holds programs that run as root.
        authorized_key: the line of ``authorized_keys`` that both users accept.
    """
    unpack(suite, root)
    write_accounts(root)
    for name, text in FILES.items():
        write(root / name, text.format(suite=suite, **asdict(SUITES[suite])))
    for name, text in PAM.items():
        write(root / "etc" / "pam.d" / name, text)
    for name, target in LINKS.items():
        link(root / name, target)
    for name in MASKED:
        link(root / "etc" / "systemd" / "system" / name, "/dev/null")
    (root / "etc" / "sudoers.d" / "010_pi-nopasswd").chmod(0o440)
    (root / "usr" / "bin" / "sudo").chmod(0o4755)
    for folder in (
        "boot",
        "home",
        "mnt",
        "opt",
        "proc",
        "run",
        "srv",
        "sys",
        "root",
        "var/log",
        "var/lib/systemd/linger",
    ):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name, (uid, _groups, _sudo, lingering) in USERS.items():
        home = root / "home" / name
        write(home / ".ssh" / "authorized_keys", authorized_key)
        for path in (home, home / ".ssh", home / ".ssh" / "authorized_keys"):
            os.chown(path, uid, uid)
            path.chmod(0o600 if path.is_file() else 0o700)
        if lingering:
            (root / "var" / "lib" / "systemd" / "linger" / name).touch()
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", suite, "-f", root / "etc/ssh/ssh_host_ed25519_key"],
        check=True,
    )
    return root


def write_accounts(root: Path) -> None:
    """The files passwd, group and shadow, which the packages' scripts would have made."""
    masters = root / "usr" / "share" / "base-passwd"
    passwd = (masters / "passwd.master").read_text().splitlines()
    passwd += [f"{name}:*:{uid}:65534::/:/usr/sbin/nologin" for name, uid in SYSTEM_USERS.items()]
    passwd += [f"{name}:*:{uid}:{uid}:{name}:/home/{name}:/bin/bash" for name, (uid, *_rest) in USERS.items()]
    groups = [line.split(":")[:3] for line in (masters / "group.master").read_text().splitlines()]
    groups += [[name, "x", str(gid)] for name, gid in SYSTEM_GROUPS.items()]
    groups += [[name, "x", str(uid)] for name, (uid, *_rest) in USERS.items()]
    lines = []
    for name, password, gid in groups:
        members = ",".join(user for user, (_uid, wanted, *_rest) in USERS.items() if name in wanted)
        lines.append(f"{name}:{password}:{gid}:{members}")
    write(root / "etc" / "group", "\n".join(lines) + "\n")
    write(root / "etc" / "passwd", "\n".join(line.replace(":*:", ":x:", 1) for line in passwd) + "\n")
    # "*" is an account that is open, to a key, though no password fits it.
    shadow = [f"{line.split(':')[0]}:*:20000:0:99999:7:::" for line in passwd]
    write(root / "etc" / "shadow", "\n".join(shadow) + "\n")
    (root / "etc" / "shadow").chmod(0o640)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def link(path: Path, target: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def remove_root(root: Path) -> None:
    """Take a root file system away with everything a board wrote into it."""
    shutil.rmtree(root, ignore_errors=True)
