"""Every command edgeferry runs on a device, as pure functions that return argument lists.

A script is POSIX sh for dash and busybox; what varies travels as positional parameters or on stdin and is
never pasted into the script, so no name can break out of its quotes.  `$0` is the command's short name.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgeferry_deploy.snippets import APPEND, DIGEST, FSYNC, LEASE, REPLACE, START

__all__ = [
    "assemble",
    "check",
    "commit",
    "discard",
    "name_of",
    "publish",
    "receive",
    "receive_many",
    "remedy_for",
    "repair",
    "script",
    "send",
    "survey",
    "switch",
]

Argv = list[str]

# Python 2.7 and 3.x must be able to parse it: its job is to say how old the Python is.
PROBE = """from __future__ import print_function
import glob, os, platform, struct, sys
say = lambda key, value: print("\\t".join((key, str(value))))
say("version", ".".join(str(part) for part in sys.version_info[:3]))
say("executable", sys.executable or "")
say("machine", platform.machine())
say("bits", struct.calcsize("P") * 8)
try:
    say("libc", os.confstr("CS_GNU_LIBC_VERSION"))
    say("ram", os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 1048576)
except (AttributeError, ValueError, OSError):
    pass
if sys.version_info >= (3, 4):
    from importlib.util import find_spec
    for module in ("numpy", "ai_edge_litert", "tflite_runtime"):
        say(module, "yes" if find_spec(module) else "no")
ids = ["".join(open(path + part).read().strip() for part in ("Vendor", "Product"))
       for path in (found[:-6] for found in glob.glob("/sys/bus/usb/devices/*/idVendor"))]
coral = glob.glob("/dev/apex_*") or "1a6e089a" in ids or "18d19302" in ids
say("edgetpu", "yes" if coral else "no")
"""

SURVEY = (
    START
    + DIGEST
    + LEASE
    + r"""
root=$1 release=$2 chosen=$3 probe=$4
case $root in "~/"*) root=$HOME/${root#"~/"} ;; esac
case $chosen in "~/"*) chosen=$HOME/${chosen#"~/"} ;; esac
say() { printf '%s\t%s\t%s\n' "$1" "$2" "$3"; }

echo 'edgeferry-survey 1'
base=$root
while [ ! -e "$base" ] && [ "$base" != / ]; do base=$(dirname -- "$base"); done
say root "$root" "$([ -d "$base" ] && [ -w "$base" ] && echo writable || echo "unwritable $base")"
say disk free "$(df -Pk -- "$base" 2>/dev/null | tail -n 1)"

if [ -n "$chosen" ]; then set -- "$chosen"; else set -- "$root/venv/bin/python3" python3; fi
for candidate in "$@"; do
  python=$(command -v -- "$candidate" 2>/dev/null) || continue
  say python path "$python"
  "$python" -c "$probe" </dev/null 2>&1 | head -c 4096 | while read -r line; do say probe - "$line"; done
  break
done

while read -r digest member; do
  blob=$root/blobs/$digest file=$root/releases/$release/$member
  state=missing
  if [ -f "$blob" ] && [ ! -L "$blob" ]; then
    if [ "$(digest_of "$blob")" = "$digest" ]; then state=good; else state=corrupt; fi
    say blob "$digest" "$state"
  fi
  if [ -n "$release" ] && [ "$member" != - ] && [ -d "$root/releases/$release" ]; then
    if [ "$state" = good ] && [ "$file" -ef "$blob" ]; then continue; fi
    [ -f "$file" ] && [ "$(digest_of "$file")" = "$digest" ] && continue
    say damaged "$release" "$member"
  fi
done

if [ -d "$root" ]; then
  cd -- "$root" && lease && tell_lease
  for link in current previous undo; do
    if [ -L "$root/$link" ]; then say link "$link" "$(readlink -- "$root/$link")"; fi
  done
  for folder in "$root"/releases/*; do
    [ -d "$folder" ] || continue
    record=$(head -c 8192 -- "$folder/release.json" 2>/dev/null | tr -d '\000-\037')
    say release "${folder##*/}" "$record"
  done
  for folder in "$root"/env/*; do
    [ -d "$folder" ] || continue
    say env "${folder##*/}" "$([ -x "$folder/edgeferry-run" ] && echo ready || echo cut)"
  done
  for part in "$root"/blobs/*.part; do
    if [ -f "$part" ]; then name=${part##*/}; say part "${name%.part}" "$(($(wc -c <"$part")))"; fi
  done
  if [ -f service/manager ]; then say service manager "$(head -n 1 service/manager | head -c 200)"; fi
  if [ -f shared/run.json ]; then say service config "$(digest_of shared/run.json)"; fi
  for trial in state/trial state/reverting; do
    if [ -d "$trial" ]; then say service trial "$(head -n 1 "$trial/release" 2>/dev/null | head -c 200)"; fi
  done
  say disk used "$(du -sk -- "$root" 2>/dev/null | tail -n 1)"
fi
echo end
"""
)

RECEIVE = (
    START
    + r"""
mkdir -p -- "$(dirname -- "$1")" || exit
# A link that died leaves the session waiting until TCP gives up: the device's own deadline ends it before.
if timeout 1 true 2>/dev/null; then set -- "$@" timeout "$3" cat; else set -- "$@" cat; fi
if [ "$2" = 0 ]; then : >"$1" || exit; fi
size=0
[ -f "$1" ] && size=$(wc -c <"$1")
if [ "$size" -ne "$2" ]; then echo "$1 holds $((size)) bytes, not $2" >&2; exit 3; fi
path=$1
shift 3
exec "$@" >>"$path"
"""
)

# Python, because head -c reads ahead in busybox and a board need not have tar.
UNPACK = """
import sys
stream = sys.stdin.buffer
try:
    for line in iter(stream.readline, b""):
        name, size = line.decode("ascii").split()
        with open(name + ".part", "wb") as part:
            part.write(stream.read(int(size)))
except OSError as error:
    sys.exit(str(error))
"""

RECEIVE_MANY = (
    START
    + r"""
mkdir -p -- "$1/blobs" && cd -- "$1/blobs" || exit
exec "$2" -S -c "$3"
"""
)

SEND = START + 'exec cat -- "$1"\n'

PUBLISH = (
    START
    + FSYNC
    + DIGEST
    + r"""
cd -- "$1/blobs" || exit
shift
echo 'edgeferry-publish 1'
while read -r digest size; do
  part=$digest.part
  have=0
  [ -f "$part" ] && have=$(($(wc -c <"$part")))
  if [ "$have" -lt "$size" ]; then printf 'short\t%s\t%s\n' "$digest" "$have"; continue; fi
  actual=$(digest_of "$part")
  if [ "$actual" != "$digest" ]; then
    rm -f -- "$part"
    printf 'mismatch\t%s\t%s\n' "$digest" "$actual"
    continue
  fi
  chmod 444 "$part" && fsync "$part" && mv -f -- "$part" "$digest" || exit
  printf 'stored\t%s\t%s\n' "$digest" "$have"
done
fsync .
echo end
"""
)

ASSEMBLE = (
    START
    + FSYNC
    + REPLACE
    + LEASE
    + r"""
root=$1 id=$2 suffix=$3 env=$4 python=$5 runtime=$6 launcher=$7 token=$8 lock=$9
shift 9
cd -- "$root" || exit
if [ -n "$token" ]; then fence "$token" 60; fi
mkdir -p blobs releases env log || exit
# Under the lease nobody else builds; an install whose workstation vanished fails when its folder goes.
rm -rf -- releases/*.tmp-???????? env/*.tmp-???????? env/*.part-*
tmp=
trap 'if [ -n "$tmp" ]; then rm -rf -- "$tmp"; fi' EXIT
trap 'exit 129' HUP INT TERM

if [ ! -x "env/$env/edgeferry-run" ] && [ -n "$lock" ]; then
  tmp=env/$env.tmp-$suffix
  mkdir -- "$tmp" && printf '%s' "$lock" >"$tmp/lock.json" || exit
  printf '%s' "$1" | while read -r digest name; do ln -- "blobs/$digest" "$tmp/$name" || exit; done || exit
  rm -rf -- "env/$env"
  PYTHONPATH=$tmp/edgeferry-runtime.zip "$python" -m edgeferry_runtime install "$tmp" --into "env/$env" \
    </dev/null >/dev/null || exit
  # The links keep the wheels' blobs while this env lives: the next runtime needs them again.
  find "$tmp" -exec sync -- {} + 2>/dev/null || sync
  replace "$tmp" "env/$env/wheels" || exit
  fsync "env/$env"
elif [ ! -x "env/$env/edgeferry-run" ]; then
  tmp=env/$env.tmp-$suffix
  mkdir -- "$tmp" || exit
  "$python" -m zipfile -e "blobs/$runtime" "$tmp" </dev/null || exit
  # A first start then compiles nothing, not even where the card is read-only; without these files it works, too.
  "$python" -m compileall -q "$tmp/edgeferry_runtime" </dev/null >/dev/null 2>&1
  ln -- "blobs/$runtime" "$tmp/runtime.zip" || exit
  printf '%s' "$launcher" >"$tmp/edgeferry-run" && chmod 755 "$tmp/edgeferry-run" || exit
  find "$tmp" -type f -exec sync -- {} + 2>/dev/null || sync
  find "$tmp" -type d -exec sync -- {} + 2>/dev/null || sync
  rm -rf -- "env/$env"
  replace "$tmp" "env/$env" || exit
  fsync env
fi

[ -d "releases/$id" ] && exit
tmp=releases/$id.tmp-$suffix
mkdir -- "$tmp" || exit
while read -r digest member; do
  case $member in */*) mkdir -p -- "$tmp/${member%/*}" || exit ;; esac
  ln -- "blobs/$digest" "$tmp/$member" || exit
done
find "$tmp" -type d -exec sync -- {} + 2>/dev/null || sync
replace "$tmp" "releases/$id" || exit
fsync releases blobs
"""
)

REPAIR = (
    START
    + FSYNC
    + LEASE
    + r"""
cd -- "$1" || exit
fence "$3" 60
cd -- "releases/$2" || exit
while read -r digest member; do
  case $member in */*) mkdir -p -- "${member%/*}" || exit ;; esac
  rm -f -- "$member.tmp-repair"
  ln -- "$1/blobs/$digest" "$member.tmp-repair" && mv -f -- "$member.tmp-repair" "$member" || exit
  rm -f -- "$member.tmp-repair"
  fsync "$(dirname -- "$member")"
done
"""
)

# The device ends a hung check itself: closing the session does not kill what runs there.
CHECK = (
    START
    + r"""
cd -- "$1" || exit
launcher=env/$3/edgeferry-run
if [ ! -x "$launcher" ]; then echo "$1/$launcher is missing" >&2; exit 127; fi
if timeout 1 true 2>/dev/null; then set -- "$@" timeout "$4"; else set -- "$@" env; fi
release=releases/$2
shift 4
exec "$@" "$launcher" check --bundle "$release" --json </dev/null
"""
)

# What a switch may remove, on stdin; what current or previous point to stays whatever the lines say.
PRUNE = r"""
while read -r kind name; do
  for link in current previous; do
    if [ "$(readlink "$link" 2>/dev/null)" = "releases/$name" ]; then continue 2; fi
  done
  case $kind in
    release) rm -rf -- "releases/$name" ;;
    env) rm -rf -- "env/$name" ;;
  esac
done
# A blob with one link belongs to no release; an hour spares the one another push is sending right now.
find blobs -type f -links 1 ! -name '*.part' -mmin +60 -exec rm -f -- {} +
find blobs -type f -name '*.part' -mmin +10080 -exec rm -f -- {} +
exit 0
"""

RECORD = r"""
keep_record() {
  # One that was cut before its rename is nobody's: only the owner of the lease gets here.
  rm -f -- "releases/$1"/release.json.tmp-*
  new=releases/$1/release.json.tmp-$2
  printf '%s\n' "$3" >"$new" && chmod 444 "$new" && fsync "$new" || exit
  mv -f -- "$new" "releases/$1/release.json" || exit
  fsync "releases/$1"
}
"""

SWITCH = (
    START
    + FSYNC
    + REPLACE
    + APPEND
    + LEASE
    + RECORD
    + r"""
root=$1 id=$2 expected=$3 suffix=$4 python=$5 record=$6 line=$7 token=$8 trial=$9
cd -- "$root" || exit
if [ -n "$trial" ]; then
  fence "$token" 60
elif [ -n "$token" ]; then
  # From here on the device alone decides: it ends the lease however this ends, and nobody renews it meanwhile.
  fence "$token" 300
  trap 'give "$token"' EXIT
fi
now=$(readlink current 2>/dev/null)
if [ "${now##*/}" != "$expected" ]; then
  echo "current is ${now:-nothing}, not ${expected:-nothing}: somebody else switched meanwhile" >&2
  exit 3
fi
if [ ! -d "releases/$id" ]; then echo "releases/$id is gone" >&2; exit 3; fi
if [ -n "$trial" ]; then
  # TRIAL is: created, seconds, and whether a run.json waits.
  set -- $trial
  rm -rf -- state/.trial
  sh service/control arm "$root" "$id" "$expected" "$1" "$token" "$2" "$3" || exit
  if [ "$3" = 1 ]; then
    fsync shared/run.json.new && mv -f -- shared/run.json.new shared/run.json && fsync shared || exit
  fi
fi
if [ -n "$record" ]; then keep_record "$id" "$suffix" "$record"; fi
link() {
  rm -f -- "$2.tmp-$suffix" && ln -s -- "releases/$1" "$2.tmp-$suffix" && replace "$2.tmp-$suffix" "$2"
}
# previous first: the rename of current is the one moment that commits.  A cut between the two leaves them equal,
# and undo then has what previous was: whoever looks next takes it for previous, whoever locks next puts it back.
rm -f -- undo undo.tmp-* previous.tmp-* current.tmp-*  # of switches that were cut
if [ -n "$expected" ] && [ "$expected" != "$id" ]; then
  old=$(readlink previous 2>/dev/null)
  if [ -n "$old" ]; then link "${old##*/}" undo && fsync . || exit; fi
  link "$expected" previous || exit
fi
fsync releases .
link "$id" current || exit
fsync . ..
rm -f -- undo
if [ -n "$trial" ]; then
  # It goes on from here without the workstation, too: who does not prove it in time has it taken back.
  if sh service/control restart "$root"; then exit 0; fi
  sh service/control revert "$root" 'its service could not be started'
  exit 5
fi
append "$line" && fsync log/audit.jsonl log
"""
    + PRUNE
)

COMMIT = (
    START
    + FSYNC
    + APPEND
    + LEASE
    + RECORD
    + r"""
root=$1 id=$2 suffix=$3 record=$4 line=$5 token=$6
cd -- "$root" || exit
fence "$token" 300
trap 'give "$token"' EXIT
trial='' armed=''
read -r trial 2>/dev/null <state/trial/release
read -r armed 2>/dev/null <state/trial/token
if [ "$trial" != "$id" ] || [ "$armed" != "$token" ]; then
  echo "$id is not on trial any more: the board took it back" >&2
  exit 3
fi
if [ -n "$record" ]; then keep_record "$id" "$suffix" "$record"; fi
mv -- state/trial "state/.proven-$suffix" || exit
fsync state
rm -rf -- state/.proven-*
append "$line" && fsync log/audit.jsonl log
"""
    + PRUNE
)

DISCARD = (
    START
    + FSYNC
    + APPEND
    + LEASE
    + r"""
cd -- "$1" || exit
fence "$4" 60
for link in current previous undo; do
  if [ "$(readlink "$link" 2>/dev/null)" = "releases/$2" ]; then echo "$2 is $link: kept" >&2; exit 3; fi
done
rm -rf -- "releases/$2" && fsync releases
append "$3"
"""
)

# What a device says when it refuses -> what to do about it.
REMEDIES = (
    ("No space left on device", "free some space on the device, or choose another --root"),
    ("Read-only file system", "the device's file system is mounted read-only; choose another --root"),
    ("Permission denied", "give the user write access, or choose another --root"),
    ("Disk quota exceeded", "free some of the user's quota on the device, or choose another --root"),
    ("Operation not permitted", "the file system must know hard links (ext4, not FAT); choose another --root"),
    ("not found", "the device needs a POSIX shell with coreutils or busybox"),
    ("lock is not held", "nothing was switched; look at `edgeferry lock TARGET status`, then run it again"),
    ("not on trial any more", "see `edgeferry history TARGET` and `edgeferry logs TARGET`"),
    ("no such verb", "an older edgeferry set up the service there; push again"),
    ("needs systemd, and root", "let sudo work without a password on the board, or give --service user"),
    ("and lingering", "run that on the board, or give --service system or --service supervised"),
    ("runs another folder", "remove that one first: edgeferry remove TARGET --root FOLDER"),
    ("somebody else switched", "look at `edgeferry status`, then push again"),
)


def script(name: str, text: str, *arguments: str) -> Argv:
    """A shell script as an argument list; `name` becomes its `$0`."""
    return ["sh", "-c", text, f"edgeferry-{name}", *arguments]


def name_of(argv: Sequence[str]) -> str:
    """A command's short name, for messages."""
    return argv[3] if len(argv) > 3 and list(argv[:2]) == ["sh", "-c"] else (argv[0] if argv else "nothing")


def remedy_for(said: str) -> str:
    """The next step after a device refused with these words; empty when they are not known."""
    return next((remedy for words, remedy in REMEDIES if words in said), "")


def survey(root: str, release: str = "", python: str = "") -> Argv:
    """Look at everything a push, a rollback or a status needs; writes nothing.

    Stdin: a line `SHA256 MEMBER` for each blob of interest, MEMBER `-` for one that is in no release.
    """
    return script("survey", SURVEY, root, release, python, PROBE)


def receive(path: str, offset: int = 0, seconds: int = 60) -> Argv:
    """Write stdin to a file: a new one, or the rest of one that holds exactly `offset` bytes; at most so long."""
    return script("receive", RECEIVE, path, str(offset), str(seconds))


def receive_many(root: str, python: str) -> Argv:
    """Write many small partial uploads in one go (stdin: for each a line `SHA256 SIZE`, then its bytes)."""
    return script("receive-many", RECEIVE_MANY, root, python, UNPACK)


def send(path: str) -> Argv:
    """Print a file."""
    return script("send", SEND, path)


def publish(root: str) -> Argv:
    """Hash the partial uploads on stdin (lines `SHA256 SIZE`) and turn the right ones into blobs."""
    return script("publish", PUBLISH, root)


def assemble(
    root: str,
    release: str,
    suffix: str,
    env: str,
    python: str,
    runtime: str,
    launcher: str,
    token: str = "",
    lock: str = "",
    files: str = "",
) -> Argv:
    """Make the env when it is new, then link a release out of blobs (stdin: `SHA256 MEMBER`).

    Args:
        runtime, launcher: SHA-256 of the packed runtime, and the script that starts it.
        token: of a lease, of which this must be the owner.
        lock, files: text of lock.json, and `SHA256 NAME` lines of the blobs it names: for an env of wheels.
    """
    return script("assemble", ASSEMBLE, root, release, suffix, env, python, runtime, launcher, token, lock, files)


def repair(root: str, release: str, token: str) -> Argv:
    """Replace damaged members of a release by their blobs, each in one rename (stdin: `SHA256 MEMBER`).

    Only as the owner of the lease.
    """
    return script("repair", REPAIR, root, release, token)


def check(root: str, release: str, env: str, seconds: int) -> Argv:
    """Replay a release's goldens on the device."""
    return script("check", CHECK, root, release, env, str(seconds))


def switch(
    root: str,
    release: str,
    expected: str,
    suffix: str,
    python: str,
    record: str,
    line: str,
    token: str = "",
    trial: str = "",
) -> Argv:
    """Make a release current, but only while `expected` still is; then prune what stdin names.

    Stdin: lines `release ID` and `env HASH`; what current or previous point to stays whatever they say.  With a
    token only as the owner of that lease, which then ends.

    Args:
        trial: "CREATED SECONDS CONFIG": rollback is armed first and the service restarted last, the lease goes on,
            and neither `line` nor stdin count before `commit`.
    """
    return script("switch", SWITCH, root, release, expected, suffix, python, record, line, token, trial)


def commit(root: str, release: str, suffix: str, record: str, line: str, token: str) -> Argv:
    """End the trial of a release that held, and the lease; then prune what stdin names, as `switch` does."""
    return script("commit", COMMIT, root, release, suffix, record, line, token)


def discard(root: str, release: str, line: str, token: str) -> Argv:
    """Remove a release that failed its check, never current or previous, as the owner of the lease."""
    return script("discard", DISCARD, root, release, line, token)
