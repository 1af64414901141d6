"""The commands around a release, as pure functions that return argument lists: lock, history, remove."""

from __future__ import annotations

from edgeferry_deploy.commands import Argv, script
from edgeferry_deploy.snippets import APPEND, FSYNC, LEASE, MEND, REPLACE, START

__all__ = ["OWN", "give", "history", "inspect", "note", "remove", "renew", "take"]

# Everything edgeferry keeps in its root, in the order in which it goes: what is run first, the lock last.
OWN = (
    "current", "previous", "undo", "releases", "env", "blobs", "venv", "shared", "state", "service", "log", "lock",
)  # fmt: skip

TAKE = (
    START
    + FSYNC
    + REPLACE
    + LEASE
    + MEND
    + r"""
root=$1 token=$2 seconds=$3 me=$4 over=$5 expected=$6
mkdir -p -- "$root/lock" && cd -- "$root" || exit
answer() { echo 'edgeferry-lease 1'; printf 'state\t%s\n' "$1"; tell_lease; echo end; exit 0; }
lease
if [ -n "$holder" ] && [ "$holder" != "$over" ]; then answer held; fi
next=$((number + 1))
prepare "$token" "$seconds" "$up" "$me" || exit
if ! said=$(ln -- "$prepared" "lock/$next" 2>&1); then
  rm -f -- "$prepared"
  lease
  if [ -n "$holder" ]; then answer held; fi
  echo "$said" >&2
  exit 1
fi
rm -f -- "$prepared"
lease
if [ "$holder" != "$token" ]; then rm -f -- "lock/$next"; answer held; fi
for file in lock/*; do
  name=${file##*/}
  case $name in '' | 0* | *[!0-9]* | ???????????*) continue ;; esac
  if [ "$name" -lt "$next" ]; then rm -f -- "$file"; fi
done
find lock -type f -name '.new-*' -mmin +60 -exec rm -f -- {} +
now=$(readlink current 2>/dev/null)
if [ "${now##*/}" != "$expected" ]; then
  give "$token"
  echo "current is ${now:-nothing}, not ${expected:-nothing}: somebody else switched meanwhile" >&2
  exit 3
fi
mend
answer taken
"""
)

RENEW = START + LEASE + 'cd -- "$1" || exit\nfence "$2" "$3"\n'

GIVE = (
    START
    + APPEND
    + LEASE
    + r"""
root=$1 token=$2 line=$3
echo 'edgeferry-lease 1'
if cd -- "$root" 2>/dev/null; then
  lease
  tell_lease
  if [ -n "$holder" ]; then
    give "${token:-$holder}"
    if [ -n "$line" ]; then append "$line" || exit; fi
  fi
fi
echo end
"""
)

NOTE = START + APPEND + 'cd -- "$1" && append "$2"\n'

HISTORY = (
    START
    + r"""
root=$1
case $root in "~/"*) root=$HOME/${root#"~/"} ;; esac
if [ -f "$root/log/audit.jsonl" ]; then tail -n "$2" -- "$root/log/audit.jsonl" | tail -c 900000; fi
"""
)

INSPECT = (
    START
    + r"""
root=$1
case $root in "~/"*) root=$HOME/${root#"~/"} ;; esac
shift
echo 'edgeferry-root 1'
kind=folder
if [ -L "$root" ]; then kind=link
elif [ ! -e "$root" ]; then kind=absent
elif [ ! -d "$root" ]; then kind=file
elif [ "$root" -ef "$HOME" ]; then kind=home
fi
printf 'root\t%s\t%s\n' "$kind" "$root"
if [ "$kind" = folder ]; then
  for path in "$root"/* "$root"/.[!.]* "$root"/..?*; do
    if [ ! -e "$path" ] && [ ! -L "$path" ]; then continue; fi
    name=${path##*/}
    whose=foreign
    for own in "$@"; do if [ "$name" = "$own" ]; then whose=own; fi; done
    printf 'entry\t%s\t%s\n' "$whose" "$(printf '%s' "$name" | tr '\000-\037' '?')"
  done
fi
echo end
"""
)

# rm -r never follows a link; rmdir keeps a root that somebody put something into.
REMOVE = (
    START
    + LEASE
    + r"""
root=$1 token=$2
shift 2
if [ -L "$root" ]; then echo "$root is a link" >&2; exit 3; fi
cd -- "$root" || exit
fence "$token" 600
if [ -f service/control ]; then sh service/control uninstall "$root" || exit; fi
for own in "$@"; do
  if [ ! -L "$own" ] && [ -d "$own" ]; then chmod -R u+w -- "$own" 2>/dev/null; fi
  rm -rf -- "./$own" || exit
done
# How many threads are best here was measured once, and kept outside of the root.
cache=${XDG_CACHE_HOME:-$HOME/.cache}/edgeferry
if [ -f "$cache/threads.json" ]; then rm -f -- "$cache/threads.json" && rmdir -- "$cache" 2>/dev/null; fi
cd / && rmdir -- "$root"
"""
)


def take(root: str, token: str, seconds: int, owner: str, over: str, expected: str) -> Argv:
    """Take the lease for `seconds`, when it is free or its token is `over`, and current still is `expected`."""
    return script("lock", TAKE, root, token, str(seconds), owner, over, expected)


def renew(root: str, token: str, seconds: int) -> Argv:
    """Make the lease end `seconds` from now; fails when it is another's."""
    return script("renew", RENEW, root, token, str(seconds))


def give(root: str, token: str, line: str = "") -> Argv:
    """Give the lease back; without a token whoever has it, which `line` then tells the audit log."""
    return script("unlock", GIVE, root, token, line)


def note(root: str, line: str) -> Argv:
    """Add a line to the audit log."""
    return script("note", NOTE, root, line)


def history(root: str, lines: int) -> Argv:
    """Print the last lines of the audit log; nothing when there is none."""
    return script("history", HISTORY, root, str(lines))


def inspect(root: str) -> Argv:
    """Say what the root is and what lies in it, its own and not; writes nothing."""
    return script("inspect", INSPECT, root, *OWN)


def remove(root: str, token: str) -> Argv:
    """Remove everything of edgeferry's in the root, and then the root, as the owner of the lease."""
    return script("remove", REMOVE, root, token, *OWN)
