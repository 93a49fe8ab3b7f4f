#!/usr/bin/env bash
# One row of the tables in one call of at most eight minutes on one GPU; the same call goes on where
# the last one stopped. Texts come back as they are: they are scored at home, where the scorer is.
#
#   experiments/whole_text/run_gpu.sh ROW OUT [SEED]      ROW: a name in arms.py
#   experiments/whole_text/judge.py OUT.json OUT/*.jsonl   (at home)
#
# Prepare the corpus beforehand: `ldlm data --config configs/whole_h100.py`.
# TINY=1 runs the row in a minute on a CPU, to prove that it works.
set -euo pipefail
row=$1 out=$2 seed=${3:-0} minutes=${MINUTES:-6}
export PYTHONPATH=${PYTHONPATH:-.}
python=${PYTHON:-python}
name=$(echo "${row}_$seed" | tr -d ',' | tr ' ' '_')
mkdir -p "$out"
config=configs/whole_h100.py count=1000 steps="5 20 50" tiny=()
if [ "${TINY:-}" ]; then
  config=configs/whole_cpu_1h.py count=4 steps="1 2" minutes=3
  tiny=("data.source=${TEXT:?a small text file}" data.vocab_size=300 dit.layers=1 dit.width=32
        dit.heads=2 text_vae.width=32 text_vae.heads=2 text_vae.encoder_layers=1
        text_vae.decoder_layers=1 train.num_steps=4 train.batch_size=8 optim.warmup_steps=1
        "train.evals=()")
fi
readarray -t change < <("$python" -c \
  'import sys; from experiments.whole_text.arms import ARMS; print(*ARMS[sys.argv[1]], sep="\n")' "$row")
[ -n "${change[0]}" ] || change=()
if [ "${TINY:-}" ] && [ "$row" != "single tokens, posterior" ]; then tiny+=(phases.0.until=2); fi
# At the end of its time training saves and stops; what is left is for the texts.
timeout --signal=TERM "$((minutes * 60))" "$python" -m ldlm_jax.cli train --config "$config" \
  --workdir "$out/$name" "train.seed=$seed" "${change[@]}" "${tiny[@]}" || [ $? = 124 ]
# Compiling takes longer than writing: side by side, each with a share of the memory.
export XLA_PYTHON_CLIENT_PREALLOCATE=false
for n in $steps; do
  "$python" -m ldlm_jax.cli sample --workdir "$out/$name" --steps "$n" --num-samples "$count" \
    --jsonl "$out/${name}_steps_$n.jsonl" > /dev/null &
done
for job in $(jobs -p); do wait "$job"; done
"$python" -m ldlm_jax.cli export --workdir "$out/$name" --dtype bfloat16 "$out/${name}_model" \
  > /dev/null
