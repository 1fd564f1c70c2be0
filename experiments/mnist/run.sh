#!/bin/sh
# The paper's protocol on real MNIST: every experiment, ours and the authors' settings, then threat=paper, then the report.
# DATA=folder of the data sets, RUNS=where the run folders go, BIN=folder of the glr-* commands. Finished runs are kept.
set -eu
DATA=${DATA:-data}
RUNS=${RUNS:-runs/mnist}
BIN=${BIN:-.venv/bin}
HERE=$(dirname "$0")
for experiment in lrtz lrt lrsz lrs bp bp_noise straight_through \
    paper/lrs paper/lrt paper/lrsz paper/lrtz paper/bp paper/bp_noise paper/bp_lr1 paper/lrt_lr1; do
    run="$RUNS/$experiment"
    if [ -e "$run/result.json" ]; then
        echo "kept $run"
    elif [ -e "$run/config.yaml" ]; then
        "$BIN/glr-train" "resume=$run"
    else
        "$BIN/glr-train" "experiment=$experiment" data=mnist "data.root=$DATA" "run_dir=$run"
    fi
done
"$BIN/glr-evaluate" "run=$RUNS" threat=paper
"$BIN/glr-report" "runs=$RUNS" "out=$HERE" mce_baseline=bp
