#!/bin/sh
# Measures what reports/claims.md and the figures show, into one record. Stop it whenever you like; it goes on where it was.
#
#   DATA_DIR  where the files of MNIST and CIFAR-10 lie; they are fetched there if they are missing. Networks that have no
#             checkpoint are trained on cifar10-jpeg.zip, which has no public address and must lie there
#   CIFAR10   the test images of CIFAR-10, of which the first 512 are used, as more would take days; as options, by default
#             torchvision's
#   DB        the record
#   OUTPUT    where the report goes
#   RECORD    where the record is kept, packed: unpacked to DB if there is none, and packed anew in the end
#   SERIES    where the networks of figures 4 and 6 are trained
#   N         at most so many images of anything: with 4, all of it is tried in an hour or two (give another DB, OUTPUT and RECORD)
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

named() { prefix=$1; shift; for name in "$@"; do echo "$prefix$name"; done; }

resnets=$(named cifar10/resnet18-w16- $RESNETS)
lwta=$(named cifar10/resnet18-w16- $LWTA)
stochastic=$(named cifar10/resnet18-w16- $STOCHASTIC)
published=cifar10/wrn34-1-slwta-panousis2021
copies=$(named cifar10/resnet18-w16- $COPIES)
lenets=$(named cifar10/ $LENETS)
mnist=$(named mnist/cnn3- $MNIST)

# What has no checkpoint yet; each recipe is for one core.
for name in $mnist $lenets $resnets $copies cifar10/vgg19-w16 $lwta $stochastic; do
    [ -e "models/$name.safetensors" ] || echo "$name"
done | xargs -I{} -P "$(getconf _NPROCESSORS_ONLN)" "$KWBENCH" train {} --data-dir "$DATA_DIR" --download --pin

first() { echo "--n $(($1 < N ? $1 : N))"; }

images="$CIFAR10 $(first 512)"
evaluate() { "$KWBENCH" evaluate "$@" --db "$DB"; }

# The network that panousis2021's authors published.
[ -e "models/$published.safetensors" ] || "$KWBENCH" convert "$published" --download

# The papers' protocols.
evaluate $mnist --suite xiao2020 $(first 1000) --data-dir "$DATA_DIR" --download
evaluate $lenets --suite hicheur2024 $images
for suite in xiao2020 xiao2020-bb xiao2020-natural; do evaluate $resnets --suite $suite $images; done
evaluate $(named cifar10/resnet18-w16- relu relu-fast kwta0.1 kwta0.1-fast) --suite xiao2020-transfer $images
evaluate $(named cifar10/resnet18-w16- relu kwta0.1 kwta0.2) --suite costa2020 $images
evaluate $lwta --suite xiao2020 $images
# Figure 4's eps as printed, and as it must have been meant.
for suite in xiao2020-figure4 xiao2020-figure4-0.031; do
    evaluate $(named cifar10/resnet18-w16- relu kwta0.1 kwta0.2) --suite $suite $images
done

# The papers' figures.
figure() { "$KWBENCH" "$@" --db "$DB"; }

pair=$(named cifar10/resnet18-w16- relu kwta0.1)
figure experiment fit
figure experiment layers
# Of few images: logits draws a figure of each, and patterns searches in many directions around each.
figure experiment logits $pair --eps 0.031 $CIFAR10
figure experiment weights $pair --eps 0.031 $CIFAR10 $(first 64)
figure experiment patterns $pair $CIFAR10 $(first 16)
figure experiment learning $resnets
figure landscape $resnets --eps 0.031 $CIFAR10
figure sweep $pair cifar10/resnet18-w16-relu-fast --over eps=0.002,0.004,0.008,0.016,0.031 --attack pgd $CIFAR10 $(first 256)
figure sweep $pair cifar10/resnet18-w16-relu-fast --over pgd.steps=1,5,10,20,40,100 --attack pgd --eps 0.031 $CIFAR10 $(first 256)
figure experiment answers $lenets --suite hicheur2024 $CIFAR10 $(first 64)
for under in "--attack pgd" "--suite strong"; do
    figure sparsity digits/resnet18-kwta0.1 --gammas 0.1,0.2,0.3,0.5 --folder "$SERIES" $under $(first 360)
done

keep() {
    "$KWBENCH" report --claims --figures --db "$DB" --output "$OUTPUT"
    "$PYTHON" bench/papers/packed.py pack "$DB" "$RECORD"
}
keep

# The strong suite, last what takes longest: minutes a network at first, more than an hour in the end.
evaluate $(named mnist/cnn3- relu relu-at relu-trades relu-free kwta0.1 kwta0.1-channel kwta0.1-free) \
    --suite strong --norm linf --eps 0.3 $(first 1000) --data-dir "$DATA_DIR" --download
evaluate $lenets --suite strong --norm linf --eps 0.3 $images
evaluate $(named cifar10/resnet18-w16- relu relu-fast kwta0.1 kwta0.2) $lwta --suite strong --norm linf --eps 0.031 $images
evaluate $stochastic --suite strong --norm linf --eps 0.031 $images
evaluate $stochastic --suite panousis2021 $images
evaluate $published --suite strong --norm linf --eps 8/255 $images
evaluate $(named mnist/cnn3- kwta0.1-at kwta0.1-trades) \
    --suite strong --norm linf --eps 0.3 $(first 256) --data-dir "$DATA_DIR" --download
evaluate $(named cifar10/resnet18-w16- kwta0.1-fast kwta0.2-fast) --suite strong --norm linf --eps 0.031 $images
evaluate $published --suite panousis2021 $images
keep
