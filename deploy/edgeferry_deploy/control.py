"""`service/control`: the script on a board that runs what is current, and takes back what was not proven.

A release (or a `run.json`) that was just switched to is on trial: `state/trial/` says what was there before.
Whoever pushes proves it over a window and commits.  The board goes back by itself when

* nobody moved the deadline in time: the workstation vanished;
* the service was started more than `STARTS` times: it crashes, or its watchdog ends it;
* it is started in another boot: the power was cut.

The guard is a child of the service: it needs no timer, no root and no systemd.  To take back is to rename
`state/trial` to `state/reverting`, which only one can do, and then to undo every change; a cut on the way is gone
on with at the next start.  Seconds are those of uptime, so a clock that jumps changes nothing.
"""

from __future__ import annotations

from edgeferry_deploy.commands import Argv, script
from edgeferry_deploy.snippets import APPEND, FSYNC, LEASE, REPLACE, START

__all__ = ["CONTROL", "health", "log", "restart", "revert", "uninstall"]

CONTROL = (
    "#!/bin/sh\n# Runs what is current here, and takes back what was not proven.  Written by `edgeferry push`.\n"
    + START
    + FSYNC
    + REPLACE
    + APPEND
    + LEASE
    + r"""
verb=$1 root=$2
shift 2
cd -- "$root" || exit
manager='' unit='' watchdog=20 patience=120
read -r manager unit watchdog patience 2>/dev/null <service/manager
say() { printf '%s\t%s\n' "$1" "$2"; }
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }
if [ "$manager" = user ]; then
  XDG_RUNTIME_DIR=${XDG_RUNTIME_DIR:-/run/user/$(id -u)}
  export XDG_RUNTIME_DIR
fi
systemd() {
  if [ "$manager" = user ]; then systemctl --user "$@"; return; fi
  case $1 in show | is-active) systemctl "$@" ;; *) as_root systemctl "$@" ;; esac
}
# Where volatile files are: in memory.
runtime_of() {
  case $manager in
    system) echo "/run/$unit" ;;
    user) echo "$XDG_RUNTIME_DIR/$unit" ;;
    *) if [ -d /dev/shm ] && [ -w /dev/shm ]; then base=/dev/shm; else base=/tmp; fi
       sum=$(printf %s "$root" | cksum)
       echo "$base/$unit-$(id -u)-${sum%% *}" ;;
  esac
}
# launcher_of RELEASE: what starts the environment it was checked with.
launcher_of() {
  env=$(sed -n 's/.*"env":"\([0-9a-f]\{12\}\)".*/\1/p' "$1/release.json" 2>/dev/null | head -n 1)
  if [ -n "$env" ] && [ -x "env/$env/edgeferry-run" ]; then echo "$root/env/$env/edgeferry-run"; fi
}
link() {
  if [ -z "$1" ]; then rm -f -- "$2"; return; fi
  rm -f -- "$2.tmp-control" && ln -s -- "releases/$1" "$2.tmp-control" && replace "$2.tmp-control" "$2"
}
kept() { value=''; read -r value 2>/dev/null <"state/$1"; printf '%s' "$value"; }
put() { printf '%s\n' "$2" >"$1.tmp" && mv -f -- "$1.tmp" "$1"; }

# undo_trial: puts back what state/reverting remembers; doing it twice does no harm.
undo_trial() {
  release=$(kept reverting/release) before=$(kept reverting/before) why=$(kept reverting/why)
  if [ -f state/reverting/run.json ]; then
    cp -- state/reverting/run.json shared/run.json.tmp && fsync shared/run.json.tmp &&
      mv -f -- shared/run.json.tmp shared/run.json
  elif [ -f state/reverting/no-config ]; then
    rm -f -- shared/run.json
  fi
  if [ -f state/reverting/record ] && [ -d "releases/$release" ]; then
    record=releases/$release/release.json
    cp -- state/reverting/record "$record.tmp" && fsync "$record.tmp" && mv -f -- "$record.tmp" "$record"
  fi
  if [ "$before" != "$release" ]; then
    link "$before" current
    link "$(kept reverting/previous)" previous
    rm -f -- undo
    if [ "$(kept reverting/created)" = 1 ]; then rm -rf -- "releases/$release"; fi
  fi
  fsync . releases shared
  line='{"action":"revert","at":"%s","before":"%s","by":"the board","release":"%s","result":"reverted: %s"}'
  append "$(printf "$line" \
    "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$release" "$before" "$why")"
  rm -rf -- state/reverting
  fsync state
}
# take_back WHY: only one caller can rename.
take_back() {
  if [ -d state/trial ]; then
    put state/trial/why "$1" && fsync state/trial/why
    if [ ! -d state/reverting ]; then replace state/trial state/reverting 2>/dev/null; fi
  fi
  if [ -d state/reverting ]; then undo_trial; fi
}

start() {
  if [ -d state/reverting ]; then undo_trial; fi
  if [ -d state/trial ]; then
    printf x >>state/trial/starts
    clock
    why=''
    deadline=$(kept trial/deadline)
    if [ "$(kept trial/boot)" != "$boot" ]; then why='the board was restarted before it was proven'
    elif [ "$(($(wc -c <state/trial/starts)))" -gt 3 ]; then why='it was started 3 times and did not hold'
    elif [ "$up" -ge "${deadline:-0}" ]; then why='no word from the workstation'
    fi
    if [ -n "$why" ]; then
      echo "edgeferry: taking back $(kept trial/release): $why" >&2
      take_back "$why"
    else
      (sh service/control guard "$root" $$ </dev/null >/dev/null 2>&1 &)
    fi
  fi
  to=$(readlink current 2>/dev/null)
  launcher=''
  if [ -n "$to" ]; then launcher=$(launcher_of "$to"); fi
  if [ -z "$launcher" ] || [ ! -f shared/run.json ]; then
    echo "edgeferry: there is nothing to run in $root" >&2
    if [ "$manager" = supervised ]; then kill "$PPID"; fi
    exit 77
  fi
  runtime=$(runtime_of)
  exec "$launcher" run --config "$root/shared/run.json" --bundle "$root/$to" --state "$runtime/state.json"
}

guard() {
  while [ -d state/trial ] && kill -0 "$1" 2>/dev/null; do
    clock
    deadline=$(kept trial/deadline)
    if [ -d state/trial ] && [ "$up" -ge "${deadline:-0}" ]; then
      take_back 'no word from the workstation'
      kill "$1"
      sleep 20
      kill -9 "$1"
      return
    fi
    sleep 1
  done
}

stop() {
  case $manager in
    system | user) systemd stop "$unit.service" ;;
    supervised)
      for launcher in "$(launcher_of current)" env/*/edgeferry-run; do
        if [ -x "$launcher" ] && "$launcher" supervise --runtime "$(runtime_of)" --stop; then return; fi
      done ;;
  esac
}

restart() {
  to=$(readlink current 2>/dev/null)
  launcher=''
  if [ -n "$to" ]; then launcher=$(launcher_of "$to"); fi
  if [ -z "$launcher" ] || [ ! -f shared/run.json ]; then stop; return; fi
  case $manager in
    system | user)
      systemd reset-failed "$unit.service" 2>/dev/null
      systemd restart --no-block "$unit.service" ;;
    supervised)
      stop >/dev/null 2>&1
      "$launcher" supervise --runtime "$(runtime_of)" --watchdog "$watchdog" --start-timeout "$patience" --detach \
        -- sh "$root/service/control" start "$root" </dev/null >/dev/null ;;
    *) echo "no service was set up in $root" >&2; return 1 ;;
  esac
}

# arm RELEASE EXPECTED CREATED TOKEN SECONDS CONFIG: remember what is there; with CONFIG 1, run.json changes, too.
arm() {
  rm -rf -- state/.trial
  mkdir -p state/.trial || return
  clock
  previous=$(readlink previous 2>/dev/null)
  put state/.trial/release "$1" && put state/.trial/before "$2" && put state/.trial/previous "${previous##*/}" &&
    put state/.trial/created "$3" && put state/.trial/token "$4" && put state/.trial/boot "$boot" &&
    put state/.trial/deadline "$((up + $5))" && : >state/.trial/starts || return
  if [ "$1" = "$2" ] && [ -f "releases/$1/release.json" ]; then
    cp -- "releases/$1/release.json" state/.trial/record || return
  fi
  if [ "$6" = 1 ]; then
    if [ ! -f shared/run.json ]; then : >state/.trial/no-config || return
    else cp -- shared/run.json state/.trial/run.json || return
    fi
  fi
  fsync state/.trial/* state/.trial && mv -- state/.trial state/trial && fsync state
}

# tell TOKEN SECONDS: how the service is; the one who pushes moves the deadline by asking.
tell() {
  if [ -n "$1" ] && [ "$(kept trial/token)" = "$1" ]; then
    clock
    put state/trial/deadline "$((up + $2))" 2>/dev/null
  fi
  clock
  runtime=$(runtime_of)
  echo 'edgeferry-health 1'
  say manager "${manager:-none} ${unit:--}"
  say uptime "$up"
  say current "$(readlink current 2>/dev/null)"
  say trial "$(kept trial/release)"
  case $manager in
    system | user)
      systemd show -p ActiveState -p SubState -p MainPID -p NRestarts -p Result "$unit.service" 2>/dev/null |
        while IFS='=' read -r key text; do say "$key" "$text"; done ;;
    supervised) say supervisor "$(head -c 4096 "$runtime/supervisor.json" 2>/dev/null | tr -d '\000-\037')" ;;
  esac
  say state "$(head -c 65536 "$runtime/state.json" 2>/dev/null | tr -d '\000-\037')"
  echo end
}

log() {
  case $manager in
    # What the loop said, without what systemd says of it.
    system) set -- -q -u "$unit.service" _TRANSPORT=stdout -o cat --no-pager -n "$1"
            journalctl "$@" 2>/dev/null || as_root journalctl "$@" ;;
    user) journalctl -q --user-unit "$unit.service" _TRANSPORT=stdout -o cat --no-pager -n "$1" ;;
    *) tail -n "$1" -- "$(runtime_of)/service.log" 2>/dev/null ;;
  esac
}

uninstall() {
  stop >/dev/null 2>&1
  case $manager in
    system)
      as_root systemctl disable --quiet "$unit.service" 2>/dev/null
      as_root rm -f -- "/etc/systemd/system/$unit.service" && as_root systemctl daemon-reload ;;
    user)
      systemctl --user disable --quiet "$unit.service" 2>/dev/null
      rm -f -- "${XDG_CONFIG_HOME:-$HOME/.config}/systemd/user/$unit.service" && systemctl --user daemon-reload ;;
    supervised) rm -rf -- "$(runtime_of)" ;;
  esac
}

case $verb in
  start) start ;;
  guard) guard "$@" ;;
  stop) stop ;;
  restart) restart ;;
  arm) arm "$@" ;;
  revert) take_back "$1"; restart ;;
  health) tell "$@" ;;
  log) log "$1" ;;
  runtime) runtime_of ;;
  uninstall) uninstall ;;
  *) echo "control: no such verb: $verb" >&2; exit 2 ;;
esac
"""
)

CALL = START + 'cd -- "$1" || exit\nroot=$1 verb=$2\nshift 2\nexec sh service/control "$verb" "$root" "$@"\n'


def health(root: str, token: str = "", seconds: int = 0) -> Argv:
    """Say how the service is; with the token of a trial, move its deadline `seconds` ahead."""
    return call(root, "health", token, str(seconds))


def restart(root: str) -> Argv:
    """Restart the service on what is current; returns before it is up."""
    return call(root, "restart")


def revert(root: str, why: str) -> Argv:
    """Go back to what was there before the trial, and restart the service."""
    return call(root, "revert", why)


def log(root: str, lines: int) -> Argv:
    """The last lines the service printed."""
    return call(root, "log", str(lines))


def uninstall(root: str) -> Argv:
    """Stop the service and take it out of the system's manager."""
    return call(root, "uninstall")


def call(root: str, verb: str, *arguments: str) -> Argv:
    """A verb of the board's own script."""
    return script(f"service-{verb}", CALL, root, verb, *arguments)
