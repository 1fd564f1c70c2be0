#!/bin/sh
# Paper 1's protocol on real MNIST: every experiment, ours and the authors' settings, then threat=paper, then the report.
# DATA=folder of the data sets, RUNS=where the run folders go, BIN=folder of the glr-* commands.
set -eu
export DATA="${DATA:-data}" BIN="${BIN:-.venv/bin}"
RUNS=${RUNS:-runs/mnist}
HERE=$(dirname "$0")
for experiment in lrtz lrt lrsz lrs bp bp_noise straight_through \
    paper/lrs paper/lrt paper/lrsz paper/lrtz paper/bp paper/bp_noise paper/bp_lr1 paper/lrt_lr1; do
    sh "$HERE/../train_once.sh" "$RUNS/$experiment" "experiment=$experiment" data=mnist
done
"$BIN/glr-evaluate" "run=$RUNS" threat=paper
"$BIN/glr-report" "runs=$RUNS" "out=$HERE" mce_baseline=bp
