#!/bin/sh
# Every row of the table of accuracies: experiments x networks x data sets x five seeds (three of the controls), then their
# noise-averaged accuracy, then the report. Finished runs are kept; runs that were interrupted go on.
# DATA=folder of the data sets, RUNS=where the run folders go, BIN=folder of the glr-* commands, JOBS=runs at a time.
set -eu
DATA=${DATA:-data}
RUNS=${RUNS:-runs/estimators}
BIN=${BIN:-.venv/bin}
JOBS=${JOBS:-2}
HERE=$(dirname "$0")
export DATA RUNS BIN

train() { # NAME SEED DATA-SET OVERRIDES...
    run="$RUNS/$3/$1/seed$2" seed=$2 set=$3
    shift 3
    if [ -e "$run/result.json" ]; then
        echo "kept $run"
    elif [ -e "$run/config.yaml" ]; then
        "$BIN/glr-train" "resume=$run" progress=false
    else
        "$BIN/glr-train" "data=$set" "data.root=$DATA" "seed=$seed" "run_dir=$run" progress=false "$@"
    fi
}
if [ "${1:-}" = one ]; then
    shift
    train "$@"
    exit
fi

sets="mnist fashion_mnist"
{
    for seed in 0 1 2 3 4; do for set in $sets; do for experiment in lrs lrt lrsz lrtz; do
        echo "$experiment $seed $set experiment=$experiment"
    done; done; done
    for seed in 0 1 2 3 4; do for set in $sets; do for experiment in lrt lrtz; do
        echo "wide_$experiment $seed $set experiment=wide/$experiment"
    done; done; done
    for seed in 0 1 2; do for set in $sets; do
        for experiment in bp straight_through; do
            echo "$experiment $seed $set experiment=$experiment"
        done
        echo "wide_straight_through $seed $set experiment=wide/straight_through"
        for experiment in lrt lrsz; do
            echo "hybrid_$experiment $seed $set experiment=$experiment estimator=hybrid sampling=antithetic copies=16"
        done
    done; done
} | xargs -P "$JOBS" -L 1 sh "$0" one

"$BIN/glr-evaluate" "run=$RUNS" threat=clean > /dev/null
"$BIN/glr-evaluate" "run=[$RUNS/*/lr*/*,$RUNS/*/wide_lr*/*]" threat=clean noisy_passes=32 > /dev/null
"$BIN/glr-report" "runs=$RUNS" "out=$HERE/accuracy"
