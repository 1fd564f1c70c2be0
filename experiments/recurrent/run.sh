#!/bin/sh
# A recurrent network on MNIST: trained from loss values, beside backpropagation through time. Then the clean test images
# once more by glr-evaluate, for their intervals, and the report. Finished runs are kept, interrupted ones resumed.
# DATA=folder of the data sets, RUNS=where the run folders go, SEEDS="0 1 2", BIN=folder of the glr-* commands.
set -eu
export DATA="${DATA:-data}" BIN="${BIN:-.venv/bin}"
RUNS=${RUNS:-runs/recurrent}
HERE=$(dirname "$0")

once() { # once RUN OVERRIDE...
    run="$RUNS/$1"
    shift
    sh "$HERE/../train_once.sh" "$run" data=mnist "$@"
}

for seed in ${SEEDS:-0 1 2}; do
    once "seven_steps/lrt/$seed" experiment=rnn/lrt "seed=$seed"
    once "four_steps/lrt/$seed" experiment=rnn/lrt network.rows=7 "seed=$seed"
done
once one_row/lrt experiment=rnn/lrt network.rows=1 epochs=4
for name in lrtz lrs straight_through bp; do
    once "seven_steps/$name" "experiment=rnn/$name"
done
once last_state/lrt experiment=rnn/lrt network.readout=last network.memory=4 network.recurrent=0.1 epochs=20
"$BIN/glr-evaluate" "run=$RUNS" threat=clean
"$BIN/glr-report" "runs=$RUNS" "out=$HERE"
