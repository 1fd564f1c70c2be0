#!/bin/sh
# What an honest attacker leaves of seven networks on real MNIST: the first 1,000 test images under threat=full, which
# needs the extra [foolbox], and certificates where the training had noise; then the report.
# DATA=folder of the data sets, RUNS=where the run folders go, BIN=folder of the glr-* commands. Finished runs are kept.
set -eu
DATA=${DATA:-data}
RUNS=${RUNS:-runs/robustness}
BIN=${BIN:-.venv/bin}
HERE=$(dirname "$0")
for experiment in lrs lrsz lrt lrtz bp bp_noise straight_through; do
    run="$RUNS/$experiment"
    if [ -e "$run/result.json" ]; then
        echo "kept $run"
    elif [ -e "$run/config.yaml" ]; then
        "$BIN/glr-train" "resume=$run"
    else
        "$BIN/glr-train" "experiment=$experiment" data=mnist "data.root=$DATA" "run_dir=$run"
    fi
done
"$BIN/glr-evaluate" "run=$RUNS" threat=full limit=1000
"$BIN/glr-evaluate" "run=[$RUNS/lrs,$RUNS/lrsz,$RUNS/lrt,$RUNS/lrtz,$RUNS/bp_noise]" threat=certify limit=1000
"$BIN/glr-report" "runs=$RUNS" "out=$HERE"
