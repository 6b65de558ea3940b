#!/bin/sh
# Run the benchmarks of bench/speed on a GPU, as `make speed-gpu` does, and write their tables to a folder.
#
# One call runs one chunk of at most MINUTES, and goes on where the last one stopped. Its exit status is 0 if everything is done,
# 75 if work is left, and 1 if all that is left has failed. Nothing else should use the GPU.
#
#   MINUTES   of a chunk, by default 8
#   DEVICE    by default the GPU
#   CIFAR10   an npz file of CIFAR-10's test images; without it, what compares attacks and whole commands is skipped
#   PACK      the folder that `make speed-gpu-pack` made, by default build/speed-gpu-pack; used if it exists and there is no .venv
#   FOLDER    the folder of the tables and the state, by default build/speed-gpu
#   SMOKE     1 tests this script in minutes, with small networks and few images; with DEVICE=cpu where there is no GPU. Its
#             folder is build/speed-gpu-smoke, and its numbers mean nothing
#
# Each library runs with its own defaults: TF32 in convolutions, batches of 500. What belongs together runs side by side in one
# process, so ratios of one table are comparable.
set -eu
SMOKE=${SMOKE:-}
[ "$SMOKE" != 0 ] || SMOKE=
MINUTES=${MINUTES:-8}
DEVICE=${DEVICE:-cuda}
CIFAR10=${CIFAR10:-}
PACK=${PACK:-build/speed-gpu-pack}
FOLDER=${FOLDER:-build/speed-gpu${SMOKE:+-smoke}}
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    [ ! -x .venv/bin/python ] || PYTHON=.venv/bin/python
    if [ "$PYTHON" = python3 ] && [ -d "$PACK" ]; then
        # What the machine has, such as its own torch, stays; the pack has only what is missing.
        if [ ! -d "$PACK/site" ]; then
            python3 -m pip install --quiet --no-index --no-deps --target "$PACK/site" "$PACK"/wheels/*.whl
            cp -R "$PACK/tree/." .
        fi
        PYTHONPATH="$PACK/site${PYTHONPATH:+:$PYTHONPATH}"
        CIFAR10=${CIFAR10:-$([ ! -e "$PACK/cifar10.npz" ] || echo "$PACK/cifar10.npz")}
    fi
fi
export PYTHONPATH="bench${PYTHONPATH:+:$PYTHONPATH}"

# A benchmark, which begins anew if it is interrupted: name, minutes at most, script and options.
step() {
    name=$1
    minutes=$2
    script=$3
    shift 3
    printf '%s\t%s\t%s\n' "$name" "$minutes" "$PYTHON bench/speed/$script.py $* --threads 1 --device $DEVICE"
}

smoke_steps() {
    step throughput 1 throughput --network wrn10-1 --batches 2,4 --rounds 2
    step activations 1 activations --samples 2 --rounds 2
    step training 1 training --width 4 --n 8 --batch-sizes 4 --rounds 1
    step rivals 2 rivals resnet18-relu-at --n 2 --batch 500 --queries 10 --rounds 2
    step cost 2 cost resnet18-relu-at --n 2 --batch 500 --rounds 1
    printf 'growth\t1\t%s\n' "$PYTHON bench/speed/overhead.py resnet18-relu-at --n 8 --full 32 --rounds 1 --device $DEVICE"
}

steps() {
    for network in wrn28-10 resnet18 resnet18-kwta0.1; do
        step "throughput-$network" 4 throughput --network $network --batches 64,256,1024
    done
    for samples in 128 512; do step "activations-$samples" 2 activations --samples $samples; done
    step training 7 training --batch-sizes 128,256,512
    if [ -z "$CIFAR10" ]; then
        echo "without CIFAR10=FILE.npz, attacks and whole commands are not compared" >&2
        return
    fi
    at=cifar10/resnet18-w16-relu-fast
    natural=cifar10/resnet18-w16-relu
    for network in $at $natural; do
        for attack in pgd mim square deepfool cw; do
            step "$attack-${network#cifar10/}" 7 rivals $network --attacks $attack --n 500 --batch 500 --queries 1000 \
                --data "$CIFAR10"
        done
    done
    step strong-512-w16 7 cost $at $natural --n 512 --batch 500 --rounds 3 --data "$CIFAR10"
    step strong-5000-w16 8 cost $at --n 5000 --batch 500 --data "$CIFAR10"
    wide=cifar10/resnet18-w64-relu-at
    if [ -e "bench/papers/models/$wide.safetensors" ]; then
        step strong-512-w64 8 cost $wide --n 512 --batch 500 --registry bench/papers/full-width.yaml --data "$CIFAR10"
    else
        echo "without the weights of $wide, which bench/papers/gpu.sh trains, it is skipped" >&2
    fi
    printf 'growth\t5\t%s\n' \
        "$PYTHON bench/speed/overhead.py $at --growing $at --growing-data $CIFAR10 --data $CIFAR10 --n 256 --device $DEVICE"
}

mkdir -p "$FOLDER"
code=0
${SMOKE:+smoke_}steps | "$PYTHON" bench/chunks.py --state "$FOLDER/state" --output "$FOLDER" --minutes "$MINUTES" || code=$?
exit $code
