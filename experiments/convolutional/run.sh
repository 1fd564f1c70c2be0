#!/bin/sh
# Networks on images, with and without backpropagation: convolutional ones on MNIST, Fashion-MNIST, ten classes of
# Tiny-ImageNet and all of it. Finished runs are kept, interrupted ones resumed.
# DATA=folder of the data sets, CACHE=where decoded images are kept (null: in DATA), RUNS=where the run folders go,
# SEEDS="0 1 2", BIN=folder of the glr-* commands.
set -eu
DATA=${DATA:-data}
CACHE=${CACHE:-null}
RUNS=${RUNS:-runs/convolutional}
SEEDS=${SEEDS:-0 1 2}
BIN=${BIN:-.venv/bin}
HERE=$(dirname "$0")

once() { # once RUN OVERRIDE...
    run="$RUNS/$1"
    shift
    if [ -e "$run/result.json" ]; then
        echo "kept $run"
    elif [ -e "$run/config.yaml" ]; then
        "$BIN/glr-train" "resume=$run"
    else
        "$BIN/glr-train" "run_dir=$run" "data.root=$DATA" "$@"
    fi
}

for seed in $SEEDS; do
    for experiment in lrt straight_through bp; do
        once "mnist/conv/$experiment/$seed" "experiment=conv/$experiment" data=mnist "seed=$seed"
        once "fashion_mnist/conv/$experiment/$seed" "experiment=conv/$experiment" data=fashion_mnist \
            data.flip=true data.crop=0 "seed=$seed"
        once "tiny_imagenet_10/conv/$experiment/$seed" "experiment=conv/tiny10/$experiment" "seed=$seed" "data.cache=$CACHE"
        once "tiny_imagenet/conv/$experiment/$seed" "experiment=conv/tiny/$experiment" "seed=$seed" "data.cache=$CACHE"
    done
    once "mnist/conv/lrtz/$seed" experiment=conv/lrtz data=mnist "seed=$seed"
done

"$BIN/glr-evaluate" "run=$RUNS" threat=clean > /dev/null
"$BIN/glr-report" "runs=$RUNS" "out=$HERE"
