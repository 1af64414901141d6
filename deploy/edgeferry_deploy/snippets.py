"""Shell functions that several scripts share: fsync, rename, hashing, the audit log and the lease.

The lease is the file with the highest number in `lock/`:

    BOOT_ID END SINCE TOKEN        END and SINCE in seconds of uptime
    {"by": ..., "pid": ..., ...}   the owner in JSON

It runs while BOOT_ID is this boot's and END lies ahead, so neither a reboot nor a clock that jumps can keep it
alive.  Taking it is `ln` of a prepared file to the next number, which only one can do; only the owner of a number
rewrites it; the highest number is never removed.  So an ended lease can be followed, but never stolen from under
the one who followed it first.  An empty file is a lease that was given back.
"""

from __future__ import annotations

__all__ = ["APPEND", "DIGEST", "FSYNC", "LEASE", "MEND", "REPLACE", "START"]

# sync FILE... is fsync of each in coreutils since 8.24; where it is not known, the whole system is synced.
FSYNC = 'fsync() { sync -- "$@" 2>/dev/null || sync; }\n'
# mv -T renames over a link to a folder instead of moving into it; old busybox lacks it, Python never does.
REPLACE = """replace() {
  mv -fT -- "$1" "$2" 2>/dev/null && return
  "${python:-python3}" -c 'import os, sys; os.replace(sys.argv[1], sys.argv[2])' "$1" "$2"
}
"""
DIGEST = 'digest_of() { sum=$(sha256sum <"$1") || return 1; echo "${sum%% *}"; }\n'
START = "set -u\nexport LC_ALL=C\numask 022\n"

# A power cut may leave a torn last line: the next one starts on a line of its own.
APPEND = r"""append() {
  mkdir -p log || return
  if [ -s log/audit.jsonl ] && [ -n "$(tail -c 1 log/audit.jsonl)" ]; then echo >>log/audit.jsonl; fi
  printf '%s\n' "$1" >>log/audit.jsonl
}
"""

LEASE = r"""clock() {
  up='' boot=''
  read -r up _ 2>/dev/null </proc/uptime
  read -r boot 2>/dev/null </proc/sys/kernel/random/boot_id
  up=${up%%.*} boot=${boot:-none}
  case $up in '' | *[!0-9]*) up=$(date +%s) boot=none ;; esac
}
# Sets number, and holder, left, age, since and owner when that lease still runs.
lease() {
  number=0 holder='' left=0 age=0 since=0 owner=''
  for file in lock/*; do
    name=${file##*/}
    case $name in '' | 0* | *[!0-9]* | ???????????*) continue ;; esac
    if [ "$name" -gt "$number" ]; then number=$name; fi
  done
  clock
  if [ "$number" -eq 0 ] || [ ! -s "lock/$number" ]; then return; fi
  at='' end='' began='' by='' text=''
  { read -r at end began by; read -r text; } 2>/dev/null <"lock/$number"
  case $end in '' | *[!0-9]*) return ;; esac
  case $began in '' | *[!0-9]*) return ;; esac
  if [ "$at" != "$boot" ] || [ "$end" -le "$up" ]; then return; fi
  holder=$by left=$((end - up)) age=$((up - began)) since=$began owner=$text
}
tell_lease() {
  if [ -n "$holder" ]; then printf 'lease\t%s\t%s\t%s\t%s\n' "$holder" "$left" "$age" "$owner"; fi
}
# prepare TOKEN SECONDS SINCE OWNER: sets prepared, a file that is nobody's lease yet.
prepare() {
  prepared=lock/.new-$1-$$
  printf '%s %s %s %s\n%s\n' "$boot" "$((up + $2))" "$3" "$1" "$4" >"$prepared"
}
# fence TOKEN SECONDS: go on only as the owner, who then has SECONDS more.
fence() {
  lease
  if [ "$holder" != "$1" ]; then
    echo "the lock is not held any more${holder:+, somebody else took it}" >&2
    exit 3
  fi
  prepare "$1" "$2" "$since" "$owner" && mv -f -- "$prepared" "lock/$number" || exit
}
# give TOKEN: end the lease when it is that one.
give() {
  lease
  if [ -z "$holder" ] || [ "$holder" != "$1" ]; then return; fi
  : >"lock/.new-$1-$$" && mv -f -- "lock/.new-$1-$$" "lock/$number"
}
"""

# A switch that was cut between its two renames leaves previous == current; undo has what previous was.
MEND = r"""mend() {
  to=$(readlink current 2>/dev/null)
  if [ -z "$to" ] || [ "$(readlink previous 2>/dev/null)" != "$to" ]; then return; fi
  before=$(readlink undo 2>/dev/null)
  if [ -n "$before" ] && [ "$before" != "$to" ] && [ -d "$before" ]; then
    replace undo previous
  else
    rm -f -- previous undo
  fi
  fsync .
}
"""
