#!/bin/sh
# Train experiments on real MNIST, each once: train_once.sh RUNS EXPERIMENT... into RUNS/EXPERIMENT. Finished runs are
# kept, interrupted ones resumed. DATA=folder of the data sets, BIN=folder of the glr-* commands.
set -eu
RUNS=$1
shift
for experiment; do
    run="$RUNS/$experiment"
    if [ -e "$run/result.json" ]; then
        echo "kept $run"
    elif [ -e "$run/config.yaml" ]; then
        "$BIN/glr-train" "resume=$run"
    else
        "$BIN/glr-train" "experiment=$experiment" data=mnist "data.root=$DATA" "run_dir=$run"
    fi
done
