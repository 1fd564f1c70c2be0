#!/bin/sh
# Networks on images, with and without backpropagation: perceptrons and convolutional ones on ten classes of Tiny-ImageNet,
# convolutional ones on MNIST, Fashion-MNIST and all of Tiny-ImageNet. Finished runs are kept, interrupted ones resumed.
# DATA=folder of the data sets, CACHE=where decoded images are kept (null: in DATA), RUNS=where the run folders go,
# SEEDS="0 1 2", BIN=folder of the glr-* commands.
set -eu
DATA=${DATA:-data}
CACHE=${CACHE:-null}
RUNS=${RUNS:-runs/convolutional}
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

for experiment in bp straight_through lrt lrtz lrs lrsz; do
    for data in mnist fashion_mnist; do
        once "$data/conv/$experiment" "experiment=conv/$experiment" "data=$data"
    done
    for seed in ${SEEDS:-0 1 2}; do
        once "tiny_imagenet_10/tiny/$experiment/$seed" "experiment=tiny/$experiment" "seed=$seed" "data.cache=$CACHE"
    done
done
for experiment in bp straight_through lrt lrtz; do
    for seed in ${SEEDS:-0 1 2}; do
        once "tiny_imagenet_10/conv/$experiment/$seed" "experiment=conv/tiny10/$experiment" "seed=$seed" "data.cache=$CACHE"
    done
done
for experiment in bp straight_through lrt; do
    once "tiny_imagenet/conv/$experiment" "experiment=conv/tiny/$experiment" "data.cache=$CACHE"
done

# what reach and the local expectation are worth: variance and time of each layer's gradient
"$BIN/glr-diagnose" "run=$RUNS/tiny_imagenet_10/conv/lrt/0" repetitions=30 reference.repetitions=20 reference.copies=128 \
    copies=8 batch_size=32 "reference.estimator.joint='estimator=likelihood_ratio injection=joint'" "out=$HERE/diagnosis" \
    "estimators=[tiered,{reach:'estimator=likelihood_ratio'},{plain:'estimator=likelihood_ratio estimator.reach=false'}]"
"$BIN/glr-report" "runs=$RUNS" "out=$HERE"
