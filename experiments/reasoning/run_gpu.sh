#!/usr/bin/env bash
# One row of the tables in one call of at most ten minutes on one GPU; the same call goes on where
# the last one stopped.
#
#   experiments/reasoning/run_gpu.sh ROW OUT [SEED]
#   ROW: sudoku sudoku_28m countdown4 countdown5, and for side 9 the baselines ar ar_order mdlm
#
# Prepare the corpora beforehand where time is dear: `ldlm data --config configs/sudoku.py`.
# TINY=1 runs the row in a minute on a CPU, to prove that it works.
set -euo pipefail
row=$1 out=$2 seed=${3:-0} minutes=${MINUTES:-6}
export PYTHONPATH=${PYTHONPATH:-.}
python=${PYTHON:-python}
mkdir -p "$out"
tiny=() count=1000 steps="1 2 5 10 20 50 100 180" small=()
if [ "${TINY:-}" ]; then
  count=8 steps="1 2" minutes=0.1
  tiny=(data.source=sudoku4 data.window=17 dit.layers=1 text_vae.width=32 text_vae.heads=2
        dit.width=32 dit.heads=2 train.num_steps=4 train.batch_size=8 train.eval_samples=4
        "train.eval_steps=(1,)" optim.warmup_steps=1)
  small=(width=32 layers=1 heads=2 batch_size=8)
fi

case $row in
  sudoku | sudoku_28m | countdown4 | countdown5)
    config=configs/$row.py source=() levels=("30 given" easy hard)
    if [ "$row" != "${row#countdown}" ]; then
      config=configs/countdown.py source=("data.source=$row") levels=(all)
      [ -z "${TINY:-}" ] || tiny=("${tiny[@]:2}" train.evals='()') count=4
    elif [ "${TINY:-}" ]; then
      levels=("6 given" easy)
    fi
    # At the end of its time training saves and stops; what is left is for the evaluation.
    timeout --signal=TERM "$("$python" -c "print(round(60 * $minutes + 30))")" \
      "$python" -m ldlm_jax.cli train --config "$config" --workdir "$out/${row}_$seed" \
      "train.seed=$seed" "${source[@]}" "${tiny[@]}" || [ $? = 124 ]
    evaluate() { # NAME OPTIONS...
      "$python" -m ldlm_jax.cli eval --workdir "$out/${row}_$seed" --evals puzzles --split test \
        --num-samples "$count" --batch-size "$count" --levels "${levels[@]}" \
        --json "$out/$1_${row}_$seed.json" "${@:2}"
    }
    # Compiling takes longer than solving: so all side by side, each with a share of the memory. The
    # first makes the puzzles, which the others then find.
    export XLA_PYTHON_CLIENT_PREALLOCATE=false
    evaluate "part_${steps%% *}" --stable-steps 0 --step-counts "${steps%% *}"
    for n in ${steps#* }; do
      evaluate "part_$n" --stable-steps 0 --step-counts "$n" &
    done
    # Each puzzle in as many of the most steps as it needs.
    evaluate early --stable-steps 2 --step-counts "${steps##* }" &
    for job in $(jobs -p); do wait "$job"; done
    parts=()
    for n in $steps; do parts+=("$out/part_${n}_${row}_$seed.json"); done
    "$python" -c 'import json, sys
parts = [json.load(open(name)) for name in sys.argv[2:]]
whole = parts[0] | {"results": {k: v for part in parts for k, v in part["results"].items()}}
json.dump(whole, open(sys.argv[1], "w"), indent=1)' "$out/latent_${row}_$seed.json" "${parts[@]}"
    rm "${parts[@]}"
    ;;
  ar | ar_order | mdlm)
    config=configs/sudoku.py
    [ -z "${TINY:-}" ] || config=configs/sudoku_cpu.py
    "$python" experiments/reasoning/baselines.py train "$row" "$out/${row}_$seed" "$minutes" \
      "config=$config" "seed=$seed" width=256 layers=8 batch_size=512 learning_rate=2e-3 "${small[@]}"
    "$python" experiments/reasoning/baselines.py solve "$row" "$out/${row}_$seed" \
      "$out/${row}_$seed.json" "$count"
    ;;
  *)
    echo "unknown row $row: see the head of this file" >&2
    exit 2
    ;;
esac
