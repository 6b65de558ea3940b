#!/bin/sh
# Run all evaluations behind reports/claims.md and the figures, into one record. It can be interrupted at any time; the next run
# continues.
#
#   DATA_DIR  the folder of the files of MNIST and CIFAR-10; missing files are downloaded. Networks without a checkpoint are trained
#             on cifar10-jpeg.zip, which has no public address and must be there
#   CIFAR10   the options that select the test images of CIFAR-10, by default torchvision's. The first 512 are used, because more
#             would take days
#   DB        the record
#   OUTPUT    the folder of the report
#   RECORD    the packed record: unpacked to DB if DB does not exist, and packed again at the end
#   SERIES    the folder in which the networks of figures 4 and 6 are trained
#   N         the largest number of images in any evaluation; 4 tests the script in an hour or two (with another DB, OUTPUT and
#             RECORD)
set -eu
KWBENCH=${KWBENCH:-.venv/bin/kwbench}
PYTHON=${PYTHON:-.venv/bin/python}
DATA_DIR=${DATA_DIR:-data}
CIFAR10=${CIFAR10:---dataset cifar10 --data-dir $DATA_DIR --download}
DB=${DB:-papers.db}
OUTPUT=${OUTPUT:-reports}
RECORD=${RECORD:-reports/papers.db.xz}
SERIES=${SERIES:-build/sparsity}
N=${N:-1000}
[ -e "$DB" ] || [ ! -e "$RECORD" ] || "$PYTHON" bench/papers/packed.py unpack "$RECORD" "$DB"

RESNETS="relu relu-fast kwta0.1 kwta0.1-fast kwta0.2 kwta0.2-fast"
LWTA="lwta0.1 lwta0.1-fast lwta0.2 lwta0.2-fast"
STOCHASTIC="slwta2 slwta2-fast"
COPIES="relu-copy relu-fast-copy kwta0.1-copy kwta0.1-fast-copy"
LENETS="lenet lenet-pni lenet-smoothing lenet-smoothing-pgd lenet-smoothing-pgd-fgsm lenet-smoothing-pgd-fgsm-cw"
LENETS="$LENETS lenet-pni-smoothing-pgd-fgsm-cw"
MNIST="relu relu-at relu-trades relu-free kwta0.1 kwta0.1-channel kwta0.1-at kwta0.1-trades kwta0.1-free"

prefixed() { prefix=$1; shift; for name in "$@"; do echo "$prefix$name"; done; }

resnets=$(prefixed cifar10/resnet18-w16- $RESNETS)
lwta=$(prefixed cifar10/resnet18-w16- $LWTA)
stochastic=$(prefixed cifar10/resnet18-w16- $STOCHASTIC)
published=cifar10/wrn34-1-slwta-panousis2021
copies=$(prefixed cifar10/resnet18-w16- $COPIES)
lenets=$(prefixed cifar10/ $LENETS)
mnist=$(prefixed mnist/cnn3- $MNIST)

# Train the networks that have no checkpoint yet, one a core.
for name in $mnist $lenets $resnets $copies cifar10/vgg19-w16 $lwta $stochastic; do
    [ -e "models/$name.safetensors" ] || echo "$name"
done | xargs -I{} -P "$(getconf _NPROCESSORS_ONLN)" "$KWBENCH" train {} --data-dir "$DATA_DIR" --download --pin

images() { echo "--n $(($1 < N ? $1 : N))"; }

cifar10="$CIFAR10 $(images 512)"
evaluate() { "$KWBENCH" evaluate "$@" --db "$DB"; }

# Fetch the network that the authors of panousis2021 published.
[ -e "models/$published.safetensors" ] || "$KWBENCH" convert "$published" --download

# The papers' protocols.
evaluate $mnist --suite xiao2020 $(images 1000) --data-dir "$DATA_DIR" --download
evaluate $lenets --suite hicheur2024 $cifar10
for suite in xiao2020 xiao2020-bb xiao2020-natural; do evaluate $resnets --suite $suite $cifar10; done
evaluate $(prefixed cifar10/resnet18-w16- relu relu-fast kwta0.1 kwta0.1-fast) --suite xiao2020-transfer $cifar10
evaluate $(prefixed cifar10/resnet18-w16- relu kwta0.1 kwta0.2) --suite costa2020 $cifar10
evaluate $lwta --suite xiao2020 $cifar10
# The eps of figure 4, as printed and as presumably meant.
for suite in xiao2020-figure4 xiao2020-figure4-0.031; do
    evaluate $(prefixed cifar10/resnet18-w16- relu kwta0.1 kwta0.2) --suite $suite $cifar10
done

# The papers' figures.
figure() { "$KWBENCH" "$@" --db "$DB"; }

pair=$(prefixed cifar10/resnet18-w16- relu kwta0.1)
figure experiment fit
figure experiment layers
# Few images: logits draws a figure of each, and patterns searches in many directions around each.
figure experiment logits $pair --eps 0.031 $CIFAR10
figure experiment weights $pair --eps 0.031 $CIFAR10 $(images 64)
figure experiment patterns $pair $CIFAR10 $(images 16)
figure experiment learning $resnets
figure landscape $resnets --eps 0.031 $CIFAR10
figure sweep $pair cifar10/resnet18-w16-relu-fast --over eps=0.002,0.004,0.008,0.016,0.031 --attack pgd --precision float32 $CIFAR10 $(images 256)
figure sweep $pair cifar10/resnet18-w16-relu-fast --over pgd.steps=1,5,10,20,40,100 --attack pgd --precision float32 --eps 0.031 $CIFAR10 $(images 256)
figure experiment answers $lenets --suite hicheur2024 $CIFAR10 $(images 64)
for under in "--attack pgd --precision float32" "--suite strong"; do
    figure sparsity digits/resnet18-kwta0.1 --gammas 0.1,0.2,0.3,0.5 --folder "$SERIES" $under $(images 360)
done
# Two structures of few channels, at more gammas and a radius that natural training partly withstands: minutes.
for network in resnet18-w4-kwta wrn10-1-kwta; do
    figure sparsity $network --registry bench/papers/sparsity.yaml --gammas 0.3,0.2,0.1,0.05,0.02 --folder "$SERIES" --eps 0.05 \
        --attack pgd --set pgd.steps=20 $(images 360)
done

report_and_pack() {
    "$KWBENCH" report --claims --figures --db "$DB" --output "$OUTPUT"
    "$PYTHON" bench/papers/packed.py pack "$DB" "$RECORD"
}
report_and_pack

# The strong suite, the slowest networks last: minutes for the first, more than an hour for the last.
evaluate $(prefixed mnist/cnn3- relu relu-at relu-trades relu-free kwta0.1 kwta0.1-channel kwta0.1-free) \
    --suite strong --norm linf --eps 0.3 $(images 1000) --data-dir "$DATA_DIR" --download
evaluate $lenets --suite strong --norm linf --eps 0.3 $cifar10
evaluate $(prefixed cifar10/resnet18-w16- relu relu-fast kwta0.1 kwta0.2) $lwta --suite strong --norm linf --eps 0.031 $cifar10
evaluate $stochastic --suite strong --norm linf --eps 0.031 $cifar10
evaluate $stochastic --suite panousis2021 $cifar10
evaluate $published --suite strong --norm linf --eps 8/255 $cifar10
evaluate $(prefixed mnist/cnn3- kwta0.1-at kwta0.1-trades) \
    --suite strong --norm linf --eps 0.3 $(images 256) --data-dir "$DATA_DIR" --download
evaluate $(prefixed cifar10/resnet18-w16- kwta0.1-fast kwta0.2-fast) --suite strong --norm linf --eps 0.031 $cifar10
evaluate $published --suite panousis2021 $cifar10
report_and_pack
