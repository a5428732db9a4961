#!/usr/bin/env bash
# From nothing to a searched, drawn, retrained and tested cell, on handwritten digits that need no download.
#   bash scripts/quickstart.sh
set -euo pipefail
if [ $# -gt 0 ]; then
    printf "quickstart.sh: error: arguments: %q, expected none\n" "$1" >&2
    exit 2
fi
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

out=runs/quickstart-$(date +%Y%m%d-%H%M%S)
start=$SECONDS
# Networks for 8x8 images are so small that a second thread gains nothing, and waits where the machine is busy.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

echo "1/3  search a cell with Λ-DARTS: space S2, layer alignment by exact derivatives"
"$python" search/train_search.py --dataset digits --space s2 --layers 5 --init_channels 8 --epochs 12 \
    --batch_size 64 --derivatives exact --lambda_ 1 --arch_learning_rate 0.01 --save "$out/search"

echo "2/3  retrain the cell from scratch"
"$python" train/train.py --arch "$out/search" --dataset digits --layers 5 --init_channels 16 --epochs 15 \
    --batch_size 64 --learning_rate 0.05 --drop_path_prob 0 --save "$out/train"

echo "3/3  test it on the held-out digits"
score=$("$python" train/test.py "$out/train")

cat <<END

Done in $((SECONDS - start)) s. On the held-out digits the cell scores
  $score
The cell               $out/search/cells/normal.png and reduce.png
The search             $out/search/curves.png, metrics.csv; tensorboard --logdir $out
The trained network    $out/train/model_card.md, checkpoints/
Next, the Λ-DARTS paper's search on CIFAR-10:
  .venv/bin/python search/train_search.py --download
END
