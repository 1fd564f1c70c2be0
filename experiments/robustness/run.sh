#!/bin/sh
# What an honest attacker leaves of seven networks on real MNIST: the first 1,000 test images under threat=full, which
# needs the extra [foolbox], and certificates where the training had noise; then the report.
# DATA=folder of the data sets, RUNS=where the run folders go, BIN=folder of the glr-* commands.
set -eu
export DATA="${DATA:-data}" BIN="${BIN:-.venv/bin}"
RUNS=${RUNS:-runs/robustness}
HERE=$(dirname "$0")
for experiment in lrs lrsz lrt lrtz bp bp_noise straight_through; do
    sh "$HERE/../train_once.sh" "$RUNS/$experiment" "experiment=$experiment" data=mnist
done
"$BIN/glr-evaluate" "run=$RUNS" threat=full limit=1000
"$BIN/glr-evaluate" "run=[$RUNS/lrs,$RUNS/lrsz,$RUNS/lrt,$RUNS/lrtz,$RUNS/bp_noise]" threat=certify limit=1000
"$BIN/glr-report" "runs=$RUNS" "out=$HERE"
