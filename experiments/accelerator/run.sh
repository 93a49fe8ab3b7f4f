#!/usr/bin/env bash
# All rows on this machine's device, in order of importance, in at most ten minutes:
#   experiments/accelerator/run.sh OUT [--peers DIR] [--jobs N] [--tiny]
# Every row is a process of its own under its own limit. N of them compile side by side, each is
# measured alone. ROW@VARIANT is a row with other flags of the compiler. OUT/rows.jsonl and
# OUT/table.md are written as rows are done. DIR holds elf_bench.py and cola_bench.py, which are run
# as they are.
set -u
cd "$(dirname "$0")/../.."
out=$1; shift
peers="" size="" jobs=1 whole=600
while [ $# -gt 0 ]; do
  case $1 in
    --peers) peers=$2; shift 2 ;;
    --jobs) jobs=$2; shift 2 ;;
    --tiny) size=tiny; shift ;;
    *) echo "unknown argument $1" >&2; exit 2 ;;
  esac
done
export PYTHONPATH=.${PYTHONPATH:+:$PYTHONPATH}
python=${PYTHON:-python}
mkdir -p "$out"
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$out/compiled}"
begin=$SECONDS

# guarded NAME SECONDS COMMAND...: under a limit; a row that runs into it is told as such.
guarded() {
  local name=$1 most=$2 left=$((whole - (SECONDS - begin) - 5)); shift 2
  if [ "$left" -lt 10 ]; then
    echo "{\"row\": \"$name\", \"error\": \"not run: no time left\"}" >> "$out/rows.jsonl"
    return
  fi
  timeout -k 5 $((most < left ? most : left)) "$@"
  local code=$?
  if [ $code -ne 0 ]; then
    echo "{\"row\": \"$name\", \"error\": \"ended with $code (124: over $most s)\"}" >> "$out/rows.jsonl"
  fi
}

# all_done: waits for the rows that run side by side, and writes the table.
all_done() {
  wait
  "$python" experiments/accelerator/table.py "$out/rows.jsonl" "$out/table.md"
}

# What may help on a GPU, to be measured: loops as part of a graph that is launched once; no trial
# runs while compiling.
declare -A flags=(
  [graph]="--xla_gpu_enable_command_buffer=+WHILE,+CONDITIONAL"
  [untuned]="--xla_gpu_autotune_level=0"
)

rows=${ROWS:-$("$python" experiments/accelerator/table.py --rows)}
limit=$((75 + 15 * (jobs - 1))) running=0
for row in $rows; do
  # The peers come after the rows that are compared with theirs.
  if [ -n "$peers" ] && [[ $row == sample_1x1024_8 ]]; then
    all_done
    for peer in elf cola; do
      budget=$([ $peer = elf ] && echo 60 || echo 70)
      guarded "peer_$peer" $((budget + 15)) bash -c \
        "'$python' '$peers/${peer}_bench.py' --budget $budget ${size:+--tiny} > '$out/peer_$peer.jsonl'"
    done
  fi
  variant=${row#*@}
  [[ $row == *@* ]] && more=${flags[$variant]} || more=""
  XLA_FLAGS="${XLA_FLAGS:-} $more" \
    guarded "$row" "$limit" "$python" experiments/accelerator/row.py "$row" "$out/rows.jsonl" $size &
  running=$((running + 1))
  [ $((running % jobs)) -ne 0 ] || all_done
done
all_done
cat "$out/table.md"
