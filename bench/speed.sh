#!/bin/sh
# Runs every benchmark of bench/speed and writes what each prints into a folder. It takes about two hours, in which nothing else
# should run. The pages in bench/speed are such output, with what it means.
#
#   CIFAR10  an npz file of CIFAR-10's test images, for the parts on its networks; without one they are left out
#   OUTPUT   where the tables go
#
# `rivals.py` compares with Foolbox and torchattacks, which `make setup` installs, and adv-lib, which `make speed` does.
set -eu
PYTHON=${PYTHON:-.venv/bin/python}
OUTPUT=${OUTPUT:-build/speed}
CIFAR10=${CIFAR10:-}
mkdir -p "$OUTPUT"

measure() {
    page=$1
    script=$2
    shift 2
    echo "$script $*"
    "$PYTHON" "bench/speed/$script.py" "$@" > "$OUTPUT/$page.md"
}

for threads in 1 2; do measure "activations-$threads" activations --threads $threads; done
measure overhead overhead
measure record record
measure cost cost resnet18-relu-at resnet18-relu resnet18-kwta0.1-at resnet18-lwta0.2-at resnet18-kwta0.1
measure rivals rivals resnet18-relu-at resnet18-relu --threads 1
if [ -n "$CIFAR10" ]; then
    at=cifar10/resnet18-w16-relu-fast
    natural=cifar10/resnet18-w16-relu
    measure cost-cifar10 cost $at $natural --n 256 --data "$CIFAR10"
    measure growth overhead --growing $at --growing-data "$CIFAR10" --n 256
    measure rivals-cifar10 rivals $at $natural --n 64 --threads 1 --data "$CIFAR10"
fi
