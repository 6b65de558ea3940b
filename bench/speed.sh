#!/bin/sh
# Run every benchmark of bench/speed and write its output into a folder. It takes about two hours, during which nothing else
# should run. The pages in bench/speed are such output, with explanations.
#
#   CIFAR10  an npz file of CIFAR-10's test images; without it, the benchmarks on CIFAR-10 are skipped
#   OUTPUT   the folder of the tables
#   N, ROUNDS, MODELS
#            the number of images, of rounds, and of models on record, instead of each benchmark's own. Small numbers test the
#            script in less than half the time, but the ratios then mean nothing
#
# `rivals.py` compares with Foolbox and torchattacks, which `make setup` installs, and adv-lib, which `make speed` installs.
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

images() { echo "--n ${N:-$1}"; }

for threads in 1 2; do measure "activations-$threads" activations --threads $threads; done
measure overhead overhead $(images 180)
measure record record ${MODELS:+--models "$MODELS"}
measure cost cost resnet18-relu-at resnet18-relu resnet18-kwta0.1-at resnet18-lwta0.2-at resnet18-kwta0.1 $(images 360)
measure rivals rivals resnet18-relu-at resnet18-relu --threads 1 $(images 128)
if [ -n "$CIFAR10" ]; then
    at=cifar10/resnet18-w16-relu-fast
    natural=cifar10/resnet18-w16-relu
    measure cost-cifar10 cost $at $natural $(images 512) --data "$CIFAR10"
    measure growth overhead --growing $at --growing-data "$CIFAR10" $(images 256)
    measure rivals-cifar10 rivals $at $natural $(images 64) --threads 1 --data "$CIFAR10"
    # PGD alone, on enough images to keep its batches full.
    measure pgd-cifar10 rivals $at $(images 256) --threads 1 --attacks pgd --data "$CIFAR10"
    measure pgd-cifar10-natural rivals $natural $(images 512) --threads 1 --attacks pgd --data "$CIFAR10"
fi
