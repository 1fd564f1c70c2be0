#!/bin/sh
# Train once: train_once.sh RUN OVERRIDE... A finished run is kept, an interrupted one resumed.
# BIN=folder of the glr-* commands, DATA=folder of the data sets.
set -eu
run=$1
shift
if [ -e "$run/result.json" ]; then
    echo "kept $run"
elif [ -e "$run/config.yaml" ]; then
    "$BIN/glr-train" "resume=$run"
else
    "$BIN/glr-train" "run_dir=$run" "data.root=$DATA" "$@"
fi
