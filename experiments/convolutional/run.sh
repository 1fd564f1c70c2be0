#!/bin/sh
# Networks on images, with and without backpropagation: convolutional ones on MNIST, Fashion-MNIST, ten classes of
# Tiny-ImageNet and all of it. Finished runs are kept, interrupted ones resumed.
# DATA=folder of the data sets, CACHE=where decoded images are kept (null: in DATA), RUNS=where the run folders go,
# SEEDS="0 1 2", BIN=folder of the glr-* commands.
set -eu
export DATA="${DATA:-data}" BIN="${BIN:-.venv/bin}"
CACHE=${CACHE:-null}
RUNS=${RUNS:-runs/convolutional}
SEEDS=${SEEDS:-0 1 2}
HERE=$(dirname "$0")

once() { # once RUN OVERRIDE...
    run="$RUNS/$1"
    shift
    sh "$HERE/../train_once.sh" "$run" "$@"
}

for seed in $SEEDS; do
    for experiment in lrt straight_through bp; do
        once "mnist/conv/$experiment/seed$seed" "experiment=conv/$experiment" data=mnist "seed=$seed"
        once "fashion_mnist/conv/$experiment/seed$seed" "experiment=conv/$experiment" data=fashion_mnist \
            data.flip=true data.crop=0 "seed=$seed"
        once "tiny_imagenet_10/conv/$experiment/seed$seed" "experiment=conv/tiny10/$experiment" "seed=$seed" "data.cache=$CACHE"
        once "tiny_imagenet/conv/$experiment/seed$seed" "experiment=conv/tiny/$experiment" "seed=$seed" "data.cache=$CACHE"
    done
    once "mnist/conv/lrtz/seed$seed" experiment=conv/lrtz data=mnist "seed=$seed"
done

# layer by layer beside straight-through slopes, where those reach more
diagnose() { # diagnose DATA BATCH ESTIMATORS
    "$BIN/glr-diagnose" "run=$RUNS/$1/conv/lrt/seed0" repetitions=20 reference.repetitions=20 reference.copies=64 "batch_size=$2" \
        "reference.estimator.joint='estimator=likelihood_ratio injection=joint'" "estimators=$3" "out=$HERE/diagnoses/$1"
}
diagnose tiny_imagenet_10 32 \
    "[{windows:'estimator.windows=1200 copies=[4,2,2,2]'},{without:'estimator.windows=null copies=[4,8,2,2]'},straight_through]"
diagnose fashion_mnist 64 "[{tiered:'copies=[8,2,2]'},{windows:'estimator.windows=400 copies=[2,2,2]'},straight_through]"

"$BIN/glr-evaluate" "run=$RUNS" threat=clean > /dev/null
"$BIN/glr-report" "runs=$RUNS" "out=$HERE"
