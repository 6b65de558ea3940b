#!/bin/sh
# Run every benchmark of bench/speed and write its output to a folder. This takes about two hours, during which nothing else
# should run. The pages in bench/speed contain such output with explanations.
#
#   CIFAR10  an npz file of CIFAR-10's test images; without it, the benchmarks of CIFAR-10 networks are skipped
#   OUTPUT   the folder for the tables
#   N        number of images, instead of each benchmark's own number
#   ROUNDS   number of rounds
#   MODELS   number of models in the record
#
# With small N, ROUNDS and MODELS, a trial run takes less than half the time, but its ratios mean nothing.
#
# `rivals.py` compares with Foolbox and torchattacks, which `make setup` installs, and with adv-lib, which `make speed` installs.
set -eu
PYTHON=${PYTHON:-.venv/bin/python}
OUTPUT=${OUTPUT:-build/speed}
CIFAR10=${CIFAR10:-}
N=${N:-}
ROUNDS=${ROUNDS:-}
MODELS=${MODELS:-}
mkdir -p "$OUTPUT"

measure() {
    page=$1
    script=$2
    shift 2
    echo "$script $* ${ROUNDS:+--rounds $ROUNDS}"
    "$PYTHON" "bench/speed/$script.py" "$@" ${ROUNDS:+--rounds "$ROUNDS"} > "$OUTPUT/$page.md"
}

first() { echo "--n ${N:-$1}"; }

for threads in 1 2; do measure "activations-$threads" activations --threads $threads; done
measure overhead overhead $(first 180)
measure record record ${MODELS:+--models "$MODELS"}
measure pages pages ${MODELS:+--models "$MODELS"}
measure cost cost resnet18-relu-at resnet18-relu resnet18-kwta0.1-at resnet18-lwta0.2-at resnet18-kwta0.1 $(first 360)
measure rivals rivals resnet18-relu-at resnet18-relu --threads 1 $(first 128)
if [ -n "$CIFAR10" ]; then
    at=cifar10/resnet18-w16-relu-fast
    natural=cifar10/resnet18-w16-relu
    measure cost-cifar10 cost $at $natural $(first 512) --data "$CIFAR10"
    measure growth overhead --growing $at --growing-data "$CIFAR10" $(first 256)
    measure rivals-cifar10 rivals $at $natural $(first 64) --threads 1 --data "$CIFAR10"
    # The targets are for this attack, on enough images to keep its batches full.
    measure pgd-cifar10 rivals $at $(first 256) --threads 1 --attacks pgd --data "$CIFAR10"
    measure pgd-cifar10-natural rivals $natural $(first 512) --threads 1 --attacks pgd --data "$CIFAR10"
fi
