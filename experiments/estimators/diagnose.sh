#!/bin/sh
# glr-diagnose on networks after one epoch of training: three networks x two activations x two losses.
# DATA=folder of the data sets, RUNS=where the run folders go, BIN=folder of the glr-* commands.
set -eu
DATA=${DATA:-data}
RUNS=${RUNS:-runs/estimators/diagnosed}
BIN=${BIN:-.venv/bin}
HERE=$(dirname "$0")

for hidden in 50 500 300,100,50; do
    for experiment in lrs lrt lrsz lrtz; do
        name="$experiment-784-$(echo "$hidden" | tr , -)-10"
        if [ -e "$HERE/diagnoses/$name/diagnosis.csv" ]; then
            echo "kept $name"
            continue
        fi
        [ -e "$RUNS/$name/result.json" ] || "$BIN/glr-train" "experiment=$experiment" data=mnist "data.root=$DATA" \
            "network.hidden=[$hidden]" epochs=1 "run_dir=$RUNS/$name" progress=false
        "$BIN/glr-diagnose" "run=$RUNS/$name" repetitions=100 reference.copies=64 "out=$HERE/diagnoses/$name" > /dev/null
    done
done
"$BIN/python" "$HERE/summary.py" # tables and figure of both
