# Arguments and timed steps, shared by first_gpu_run.sh and second_gpu_run.sh.
# They source this file after they set `name` (name of the script) and `whole` (default time limit in seconds).

usage() {
    echo "$name: error: $1; expected OUT [--smoke] [--device cpu|cuda] [--seconds N]" >&2
    exit 2
}

out="" smoke="" device=cuda
while [ $# -gt 0 ]; do
    case $1 in
        --smoke) smoke=yes ;;
        --device | --seconds)
            [ $# -gt 1 ] || usage "$1: the value is missing"
            case $1 in --device) device=$2 ;; *) whole=$2 ;; esac
            shift
            ;;
        -*) usage "$1: unknown flag" ;;
        *)
            [ -z "$out" ] || usage "$1: OUT is given twice"
            out=$1
            ;;
    esac
    shift
done
[ -n "$out" ] || usage "OUT: missing"
case $device in cpu | cuda) ;; *) usage "--device: '$device'" ;; esac
case $whole in *[!0-9]* | "") usage "--seconds: '$whole'" ;; esac
if [ -e "$out" ] && [ -n "$(ls -A "$out")" ]; then usage "OUT: $out is not empty"; fi
mkdir -p "$out"
out=$(cd "$out" && pwd)
for given in CIFAR10 SEARCH; do # relative to the folder of the user
    [ -z "${!given:-}" ] || export "$given=$(realpath "${!given}")"
done
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

step() { # NAME SECONDS COMMAND...: run the command with a time limit; it may write $work/NAME.json
    local step=$1 limit=$2 left=$((whole - SECONDS)) begin=$SECONDS status=0
    shift 2
    if [ $left -lt 5 ]; then
        printf '%s\tskipped: no time left\n' "$step" | tee -a "$out/summary.tsv"
        return
    fi
    [ "$limit" -le $left ] || limit=$left
    timeout --kill-after=5 "$limit" "$@" >"$work/$step.log" 2>&1 || status=$?
    local said="failed with status $status" # timeout exits with 124 or 137; lack of memory also with 137
    case $status in
        0) said=ok ;;
        124 | 137) [ $((SECONDS - begin)) -lt "$limit" ] || said="stopped after its $limit s" ;;
    esac
    printf '%s\t%s\t%d s\n' "$step" "$said" $((SECONDS - begin)) | tee -a "$out/summary.tsv"
    { printf '\n== %s: %s\n' "$step" "$*" && cat "$work/$step.log"; } >>"$out/log.txt"
    "$python" - "$work" "$out/results.json" <<'PY'
import json, pathlib, sys
work, results = map(pathlib.Path, sys.argv[1:])
found = {path.stem: json.loads(path.read_text()) for path in sorted(work.glob("*.json"))}
results.write_text(json.dumps(found, indent=1) + "\n")
PY
}

finish() { # name the result files; status 1 if a step failed
    echo "log.txt, results.json and summary.tsv are in $out"
    ! grep -q 'failed with status' "$out/summary.tsv"
}

if [ -n "$smoke" ]; then
    step smoke 55 "$python" benchmarks/smoke.py --device "$device"
    finish
    grep -q $'^smoke\tok' "$out/summary.tsv"
    exit
fi
