"""Who keeps a board's service running, chosen there; its script and its unit written where they differ."""

from __future__ import annotations

from edgeferry_deploy.commands import Argv, script
from edgeferry_deploy.control import CONTROL
from edgeferry_deploy.snippets import FSYNC, START

__all__ = ["SETUP", "setup"]

# Texts arrive complete but for the user's name and the groups this system has.
SETUP = (
    START
    + FSYNC
    + r"""
root=$1 wanted=$2 unit=$3 limits=$4 control=$5 system_unit=$6 user_unit=$7
mkdir -p -- "$root/service" "$root/state" "$root/shared" && cd -- "$root" || exit
me=$(id -un)
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }
XDG_RUNTIME_DIR=${XDG_RUNTIME_DIR:-/run/user/$(id -u)}
export XDG_RUNTIME_DIR
refuse() { echo "$1" >&2; exit 4; }
has_system() { [ -d /run/systemd/system ] && as_root true 2>/dev/null; }
has_user() {
  [ -d /run/systemd/system ] && systemctl --user show -p Version >/dev/null 2>&1 || return
  if [ -e "/var/lib/systemd/linger/$me" ]; then return; fi
  loginctl enable-linger 2>/dev/null && [ -e "/var/lib/systemd/linger/$me" ]
}
case $wanted in
  system) has_system || refuse "a system service needs systemd, and root or sudo without a password" ;;
  user) has_user ||
    refuse "a user service needs systemd's user manager, and lingering: sudo loginctl enable-linger $me" ;;
  supervised) ;;
  *) if has_system; then wanted=system; elif has_user; then wanted=user; else wanted=supervised; fi ;;
esac

old=''
read -r old old_unit rest 2>/dev/null <service/manager
if [ -n "$old" ] && [ "$old" != "$wanted" ]; then sh service/control uninstall "$root" || exit; fi

# keep FILE TEXT: replace it when it differs; sets changed.
changed=0
keep() {
  if [ -f "$1" ] && [ "$(cat -- "$1"; echo .)" = "$2
." ]; then return; fi
  printf '%s\n' "$2" >"$1.tmp" && fsync "$1.tmp" && mv -f -- "$1.tmp" "$1" && changed=1
}
keep service/control "$control" && keep service/manager "$wanted $unit $limits" || exit
fsync service

require_own() {
  if [ -f "$1" ] && ! grep -qxF "# root $root" "$1"; then
    refuse "$1 runs another folder: $(sed -n 's/^# root //p' "$1")"
  fi
}
groups=''
for group in video render plugdev gpio i2c spi audio; do
  if grep -q "^$group:" /etc/group; then groups="$groups $group"; fi
done
fill() { printf '%s\n' "$1" | sed -e "s/@USER@/$me/" -e "s/@GROUPS@/${groups# }/"; }
changed=0
case $wanted in
  system)
    case $me in *[!A-Za-z0-9_.-]*) refuse "user name $me cannot be written into a unit" ;; esac
    file=/etc/systemd/system/$unit.service
    require_own "$file"
    fill "$system_unit" >service/unit.tmp || exit
    if ! cmp -s service/unit.tmp "$file"; then
      as_root cp -- service/unit.tmp "$file.tmp" && as_root chmod 644 "$file.tmp" &&
        as_root mv -f -- "$file.tmp" "$file" && as_root systemctl daemon-reload || exit
    fi
    rm -f service/unit.tmp
    if [ ! -e "/etc/systemd/system/multi-user.target.wants/$unit.service" ]; then
      as_root systemctl enable --quiet "$unit.service" || exit
    fi ;;
  user)
    folder=${XDG_CONFIG_HOME:-$HOME/.config}/systemd/user
    file=$folder/$unit.service
    mkdir -p -- "$folder" || exit
    require_own "$file"
    keep "$file" "$(fill "$user_unit")" || exit
    if [ "$changed" = 1 ]; then systemctl --user daemon-reload || exit; fi
    if [ ! -e "$folder/default.target.wants/$unit.service" ]; then
      systemctl --user enable --quiet "$unit.service" || exit
    fi ;;
esac
echo 'edgeferry-service 1'
printf 'manager\t%s %s\n' "$wanted" "$unit"
echo end
"""
)


def setup(root: str, manager: str, unit: str, limits: str, system_unit: str, user_unit: str) -> Argv:
    """Write the service's files where they differ, and have the system's manager know them.

    Args:
        manager: system, user, supervised, or auto for the first of these that can be had.
        limits: seconds of the watchdog and of the start, "20 120", for the supervisor.
    """
    return script(
        "service", SETUP, root, manager, unit, limits, CONTROL.rstrip("\n"), system_unit.rstrip("\n"),
        user_unit.rstrip("\n"),
    )  # fmt: skip
