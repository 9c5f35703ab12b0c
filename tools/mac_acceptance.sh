#!/bin/bash
# What a person runs on a Mac in ten minutes, and the one file they send back: steps as lines of the report schema 0.2.2,
# with the lines that `mlxk bench --report` writes between them, so that `mlxk bench report FILE` reads all of it.
#
#   tools/mac_acceptance.sh [--mlxk PROGRAM] [--into FILE] [--demo] [--no-questions] [--dry-run]
#
#   --mlxk PROGRAM   the program to try (the first mlxk in the search path)
#   --into FILE      the file to send (mlxk-acceptance.jsonl)
#   --demo           the models that ship with the program only; no question about others is asked
#   --no-questions   answer every question with no: nothing is fetched, slept, or installed
#   --dry-run        say what would be done, and do nothing
#
# Nothing is fetched, put to sleep, or installed as a service without a yes. The file has no name of a person, machine or
# folder: these are replaced. It runs in bash 3.2 of macOS, and on Linux, where the steps for a Mac are skipped.
set -u

MLXK=mlxk
INTO=mlxk-acceptance.jsonl
DEMO=no
QUESTIONS=yes
DRY=no
PORT=18763
CHAT=mlx-community/Llama-3.2-1B-Instruct-4bit
SPEECH=mlx-community/whisper-tiny.en-mlx
VISION=mlx-community/Qwen2.5-VL-3B-Instruct-4bit

while [ $# -gt 0 ]; do
  case $1 in
    --mlxk) MLXK=${2:?--mlxk needs a program}; shift ;;
    --into) INTO=${2:?--into needs a file}; shift ;;
    --demo) DEMO=yes ;;
    --no-questions) QUESTIONS=no ;;
    --dry-run) DRY=yes ;;
    -h | --help) sed -n '2,/^set -u/s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) echo "$0: unknown argument '$1'; see --help" >&2; exit 2 ;;
  esac
  shift
done

say() { printf '\n== %s\n' "$*" >&2; }

if [ $DRY = no ]; then
  MLXK=$(command -v "$MLXK") || { echo "$0: there is no program mlxk; name it with --mlxk" >&2; exit 2; }
  case $MLXK in /*) ;; *) MLXK=$PWD/$MLXK ;; esac
  # The interpreter beside the program: macOS itself has none.
  real=$MLXK
  while [ -L "$real" ]; do
    target=$(readlink "$real")
    case $target in /*) real=$target ;; *) real=$(dirname "$real")/$target ;; esac
  done
  PYTHON=$(dirname "$real")/python
  [ -x "$PYTHON" ] || { echo "$0: there is no interpreter beside $real" >&2; exit 2; }
  : > "$INTO" || exit 2
  case $INTO in /*) ;; *) INTO=$PWD/$INTO ;; esac
  WORK=$(mktemp -d "${TMPDIR:-/tmp}/mlxk-acceptance.XXXXXX") || exit 2
  SERVER=
  # shellcheck disable=SC2317  # called by the trap
  clean() {
    [ -z "$SERVER" ] || kill "$SERVER" 2> /dev/null
    rm -rf "$WORK"
  }
  trap clean EXIT
  trap 'exit 130' INT TERM
fi

# record NAME OUTCOME BEGAN FILE: append the line of a step, with the end of what it printed.
record() {
  "$PYTHON" - "$1" "$2" "$3" "$4" "$INTO" << 'PYTHON'
import datetime, getpass, json, os, platform, re, socket, sys, time
from importlib.metadata import version

name, outcome, began, path, into = sys.argv[1:]
with open(path, encoding="utf-8", errors="replace") as file:
    text = file.read()[-6000:]
user, host = getpass.getuser(), socket.gethostname()
for word, stand_in in ((os.path.expanduser("~"), "~"), (host, "HOST"), (host.partition(".")[0], "HOST"), (user, "USER")):
    if len(word) > 2:
        text = re.sub(rf"(?<![\w-]){re.escape(word)}(?![\w-])", stand_in, text)
text = re.sub(r"/(private/)?(var/folders|tmp|Users|home)/[^\s'\"]*", "PATH", text)
now = time.time()
line = {
    "schema_version": "0.2.2",
    "timestamp": datetime.datetime.fromtimestamp(now, datetime.timezone.utc).isoformat(),
    "test_start_ts": float(began),
    "test_end_ts": now,
    "mlx_knife_version": version("mlxk"),
    "test": f"mac_acceptance::{name}",
    "outcome": outcome,
    "duration": max(0.0, now - float(began)),
    "system": {"platform": sys.platform, "python_version": platform.python_version(), "mlx_version": version("mlx")},
    "metadata": {"printed": text.splitlines()},
}
with open(into, "a", encoding="utf-8") as file:
    file.write(json.dumps(line) + "\n")
PYTHON
}

# step NAME WHAT COMMAND…: run a step, and record how it ended; status 77 means that it was skipped.
step() {
  name=$1
  say "$2"
  shift 2
  if [ $DRY = yes ]; then
    echo "   $name" >&2
    return 0
  fi
  began=$(date +%s)
  # Its output is also shown, so that a person sees that something goes on.
  ("$@") < /dev/null 2>&1 | tee "$WORK/printed" >&2
  status=${PIPESTATUS[0]}
  outcome=failed
  [ "$status" -ne 0 ] || outcome=passed
  [ "$status" -ne 77 ] || outcome=skipped
  record "$name" "$outcome" "$began" "$WORK/printed"
  echo "-- $name: $outcome" >&2
  [ "$outcome" != failed ] || FAILED="$FAILED $name"
}
FAILED=

skip() { echo "skipped: $*"; exit 77; }
on_mac() { [ "$(uname -s)" = Darwin ] || skip "this is no Mac"; }

# ask QUESTION: whether the person says yes; no without a terminal.
ask() {
  [ $DRY = no ] && [ $QUESTIONS = yes ] && [ -r /dev/tty ] || return 1
  printf '\n%s [y/N] ' "$1" > /dev/tty
  read -r answer < /dev/tty || return 1
  case $answer in [yY]*) return 0 ;; *) return 1 ;; esac
}

wait_for_server() {
  waited=0
  until curl -fs --max-time 5 "http://127.0.0.1:$PORT/readyz" > /dev/null; do
    waited=$((waited + 1))
    [ $waited -lt 120 ] || return 1
    sleep 1
  done
}

machine() {
  "$MLXK" --version
  uname -srm
  on_mac
  sw_vers
  for each in hw.model machdep.cpu.brand_string hw.memsize hw.ncpu hw.perflevel0.physicalcpu iogpu.wired_limit_mb \
    vm.swapusage kern.memorystatus_vm_pressure_level; do
    sysctl "$each"
  done
  pmset -g batt | head -1
  pmset -g therm
  ulimit -n
}

doctor() { "$MLXK" doctor --report; }

built_in_models() {
  "$MLXK" run demo "What is mlxk?" || return 1
  "$MLXK" run demo-vision "What color is it?" --image demo-vision/blue-square.jpg || return 1
  "$MLXK" run demo-speech --audio demo-speech/hello.wav
}

# measured MODEL TOKENS: as many of a prompt, and a quarter of them to generate.
measured() { "$MLXK" bench "$1" -p "$2" -n $(($2 / 4)) -r 3 --report "$INTO"; }

# What the system says while a model computes: memory, pressure, swap, processor and GPU.
watched() {
  "$MLXK" monitor -o "$WORK/samples.jsonl" -- "$MLXK" bench demo -p 256 -n 32 -r 1 || return 1
  head -2 "$WORK/samples.jsonl"
  tail -2 "$WORK/samples.jsonl"
}

on_the_gpu() {
  on_mac
  "$MLXK" doctor --json > "$WORK/doctor.json"
  "$PYTHON" - "$WORK/doctor.json" << 'PYTHON'
import json, sys

import mlx.core as mx

print("Metal", mx.metal.is_available(), "device", mx.default_device(), mx.device_info())
limit = mx.set_wired_limit(int(mx.device_info()["max_recommended_working_set_size"]))
print("wired limit was", limit, "and can be raised")
mx.set_wired_limit(limit)
checks = [each for each in json.load(open(sys.argv[1]))["data"]["checks"] if each.get("group") == "computing"]
print(json.dumps(checks))
sys.exit(0 if mx.metal.is_available() and mx.default_device().type == mx.gpu else 1)
PYTHON
}

# A clone takes no space; a copy does. Also what the peak of this process is by the two figures of the system.
clone_and_memory() {
  "$PYTHON" - "$WORK" << 'PYTHON'
import os, resource, shutil, sys

from mlxk.adapters.filesystem.workspace_draft import copy_file

try:
    from mlxk.adapters.system.machine_meter import SystemMachineMeter
except ImportError as error:
    sys.exit(f"the meter has moved: {error}")

folder, size = sys.argv[1], 128 * 2**20
source, target = f"{folder}/source.bin", f"{folder}/clone.bin"
with open(source, "wb") as file:
    for _ in range(size // 2**20):
        file.write(os.urandom(2**20))
    os.fsync(file.fileno())
before = shutil.disk_usage(folder).free
method = copy_file(source, target, lambda _: None)
os.sync()
taken = before - shutil.disk_usage(folder).free
print(f"copied by {method.name}, of {size} bytes {max(taken, 0)} were taken")
with open(target, "r+b") as file:
    file.write(b"changed")
same = open(source, "rb").read(7) == b"changed"
print("the original changes with the clone" if same else "the original stays as it is")
print("peak of this process:", SystemMachineMeter().peak_process_bytes(), "resident:", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
cloned = method.name == "CLONED"
sys.exit(1 if same or (sys.platform == "darwin" and (not cloned or taken > size // 2)) else 0)
PYTHON
}

# Names in any case: one model, as disks of a Mac have it.
names_in_any_case() {
  mkdir -p "$WORK/hub/models--Org--Model/snapshots/$(printf 'a%.0s' 1 2 3 4 5 6 7 8 9 10)"
  for name in Org/Model org/model ORG/MODEL; do
    HF_HUB_CACHE="$WORK/hub" "$MLXK" show "$name" --json
  done > "$WORK/shown"
  cat "$WORK/shown"
  [ "$(grep -c '"name": "Org/Model"' "$WORK/shown")" -eq 3 ]
}

start_server() {
  "$MLXK" serve --port $PORT --model "$1" > "$WORK/server.out" 2> "$WORK/server.log" &
  SERVER=$!
  wait_for_server || { cat "$WORK/server.log"; stop_server; return 1; }
}

stop_server() {
  kill "$SERVER" 2> /dev/null
  wait "$SERVER"
  status=$?
  SERVER=
  return $status
}

request() {
  curl -fsS --max-time 120 "http://127.0.0.1:$PORT/v1/chat/completions" -H 'Content-Type: application/json' \
    -d '{"model": "'"$1"'", "max_tokens": 48, "messages": [{"role": "user", "content": "Say hello."}]}'
}

serving() {
  start_server "$1" || return 1
  request "$1" || { stop_server; return 1; }
  "$MLXK" ps || { stop_server; return 1; }
  # The socket of the server, by which commands compute on it.
  "$MLXK" run "$1" "Hello" --verbose || { stop_server; return 1; }
  "$MLXK" bench --url "http://127.0.0.1:$PORT" "$1" --streams 1,4 -p 64 -n 16 --report "$INTO" || { stop_server; return 1; }
  stop_server
}

sleeping() {
  start_server demo || return 1
  before=$("$PYTHON" -c 'import time; print(time.time(), time.monotonic())')
  pmset sleepnow || { stop_server; return 1; }
  sleep 20
  after=$("$PYTHON" -c 'import time; print(time.time(), time.monotonic())')
  echo "wall and monotonic clock before: $before after: $after"
  request demo || { stop_server; return 1; }
  stop_server
}

as_a_service() {
  "$MLXK" service install --start -- --port $PORT --model demo || return 1
  failed=0
  wait_for_server && request demo || failed=1
  launchctl print "gui/$(id -u)/dev.mlxk.server" | grep -E 'state|pid|last exit|spawn type' || failed=1
  "$MLXK" service uninstall --stop || failed=1
  return $failed
}

real_model() {
  case $1 in
    "$CHAT") "$MLXK" run "$1" "Why is the sky blue? One sentence." --verbose && measured "$1" 512 && serving "$1" ;;
    "$SPEECH") "$MLXK" run "$1" --audio demo-speech/hello.wav ;;
    *) "$MLXK" run "$1" "What do you see?" --image demo-vision/blue-square.jpg --verbose ;;
  esac
}

fetched() { "$MLXK" pull "$1"; }

if [ $DRY = no ]; then
  date > "$WORK/printed"
fi
step machine "This machine" machine
step doctor "The installation" doctor
step built_in_models "The models that ship with the program" built_in_models
step gpu "Metal, working set and wired memory" on_the_gpu
step bench_demo "Figures of the built-in model" measured demo 128
step monitor "The system while a model computes" watched
step clone "A clone on this disk, and the memory of a process" clone_and_memory
step names "Names in any case" names_in_any_case
step serve "A server, its socket, and four requests at once" serving demo

if [ $DEMO = no ]; then
  for each in "$CHAT 0.7 chat" "$SPEECH 0.1 speech" "$VISION 3.1 vision"; do
    # shellcheck disable=SC2086  # three words
    set -- $each
    if [ $DRY = yes ]; then
      say "$1: would ask whether to fetch $2 GB"
    elif ask "Fetch $1, about $2 GB, from the Hub into the Hugging Face cache? It stays there; mlxk rm removes it."; then
      step "pull_$3" "Fetching $1" fetched "$1"
      step "model_$3" "$1" real_model "$1"
    fi
  done
fi

if [ $DRY = yes ]; then
  say "would ask whether to put this Mac to sleep, and whether to try the service"
elif [ "$(uname -s)" = Darwin ]; then
  if ask "Put this Mac to sleep now, while a server runs? Wake it with a key after half a minute."; then
    step sleep "Sleep" sleeping
  fi
  if ask "Install the server as a service of launchd, ask it something, and remove it again?"; then
    step launchd "The service" as_a_service
  fi
fi
step machine_after "This machine, after all of it" machine

[ $DRY = no ] || exit 0
say "$(wc -l < "$INTO" | tr -d ' ') lines in $INTO: please look through it, and send it."
if [ -n "$FAILED" ]; then
  echo "Failed:$FAILED" >&2
  exit 1
fi
echo "All steps passed, or were skipped." >&2
