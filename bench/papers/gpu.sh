#!/bin/bash
# Train ResNet-18 of xiao2020 at full width on a GPU, and evaluate it under the paper's attacks and the strong suite. The networks
# and recipes are those of full-width.yaml; the hashes of their weights are pinned there.
#
#   bash bench/papers/gpu.sh [--minutes 8] [--smoke]
#
# One call runs one chunk of at most so many minutes, and goes on where the last one stopped. Its exit status is 0 if everything
# is done, 75 if work is left, and 1 if all that is left has failed. To the end:
#
#   until bash bench/papers/gpu.sh; do [ $? = 75 ] || break; done
#
#   DATA        the options that select CIFAR-10, by default torchvision's in the folder data
#   DEVICE      where to compute, by default on a GPU if there is one
#   FOLDER      the folder of the record, the report and the state, by default build/full-width
#   N           number of images to evaluate, by default 1000
#
# --smoke tests this script on a CPU in minutes: all epochs, of two batches of four images, at width 4, with two steps of the
# adversary; two of the networks are evaluated, on two images. Its registry, weights and record are in build/full-width-smoke, and
# its numbers mean nothing.
set -eu
minutes=8
smoke=
while [ $# -gt 0 ]; do
    case $1 in
        --minutes) minutes=$2; shift 2 ;;
        --smoke) smoke=1; shift ;;
        *) echo "usage: bash bench/papers/gpu.sh [--minutes 8] [--smoke]" >&2; exit 2 ;;
    esac
done
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    [ ! -x .venv/bin/python ] || PYTHON=.venv/bin/python
fi
FOLDER=${FOLDER:-build/full-width${smoke:+-smoke}}
DATA=${DATA:---data-dir data --download}
DEVICE=${DEVICE:-auto}
N=${N:-1000}
registry=bench/papers/full-width.yaml
# Of the paper, for CIFAR-10.
eps=0.031
export PYTHONPATH="bench${PYTHONPATH:+:$PYTHONPATH}"

if [ -n "$smoke" ]; then
    DEVICE=cpu
    N=2
    # So large that the first attacks break everything, and the strong suite soon ends.
    eps=0.5
    DATA="--data $FOLDER/images.npz"
    registry=$FOLDER/registry.yaml
    if [ ! -e "$registry" ]; then
        "$PYTHON" bench/papers/smoke_images.py "$FOLDER/images.npz"
        sed -e 's/width: 64/width: 4/' -e 's/batch_size: 256/batch_size: 4/' -e 's/steps: 8,/steps: 2,/' bench/papers/full-width.yaml > "$registry"
    fi
fi

networks=
for name in relu kwta0.1 kwta0.2; do
    networks="$networks cifar10/resnet18-w64-$name cifar10/resnet18-w64-$name-at"
done
evaluated=$networks
[ -z "$smoke" ] || evaluated="cifar10/resnet18-w64-relu cifar10/resnet18-w64-kwta0.1"

# A step that goes on by itself where it was interrupted: training from its progress file, evaluation from the record.
step() {
    name=$1
    shift
    printf '%s\t-\t%s\n' "$name" "$PYTHON -m kwbench $*"
}

steps() {
    for network in $networks; do
        step "train-${network#cifar10/}" train "$network" --registry "$registry" --device "$DEVICE" $DATA --pin
    done
    for suite in xiao2020 strong; do
        step "$suite" evaluate $evaluated --registry "$registry" --device "$DEVICE" $DATA --n "$N" --suite $suite \
            --norm linf --eps $eps --db "$FOLDER/papers.db"
    done
    step report report --markdown --verdicts --db "$FOLDER/papers.db" --output "$FOLDER/report"
}

mkdir -p "$FOLDER"
code=0
steps | "$PYTHON" bench/chunks.py --state "$FOLDER/state" --minutes "$minutes" || code=$?
exit $code
