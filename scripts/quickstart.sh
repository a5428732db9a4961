#!/usr/bin/env bash
# Search with DARTS and Λ-DARTS on handwritten digits (no download), then retrain and test the cell of Λ-DARTS.
#   bash scripts/quickstart.sh
set -euo pipefail
if [ $# -gt 0 ]; then
    printf "quickstart.sh: error: arguments: %q, expected none\n" "$1" >&2
    exit 2
fi
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

out=runs/quickstart-$(date +%Y%m%d-%H%M%S)
start=$SECONDS
# Networks for 8x8 images are too small to gain from a second thread, which would wait on a busy machine.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# Three cells of NAS-Bench-201. The learning rate of alpha is high, because this search has 440 steps instead of 39,000
# in the paper. docs/quickstart.md shows results for other seeds and settings.
search=(nasbench201/train_search.py --dataset digits --init_channels 16 --cells_per_stage 1 --epochs 20 --batch_size 32
    --arch_learning_rate 0.03 --weights_first --seed 1)

echo "1/4  search with DARTS and Λ-DARTS, at the same time; the lines below are from Λ-DARTS"
mkdir -p "$out"
"$python" "${search[@]}" --method darts --save "$out/darts" >"$out/darts.log" 2>&1 &
darts=$!
"$python" "${search[@]}" --method lambda-darts-exact --lambda_ 1 --save "$out/lambda-darts" &
lambda=$!
trap 'kill "$darts" "$lambda" 2>/dev/null || true; wait' EXIT
wait "$darts" || { status=$? && cat "$out/darts.log" >&2; exit $status; }
wait "$lambda"
trap - EXIT

echo "2/4  draw both searches"
"$python" analysis/compare.py "$out/darts" "$out/lambda-darts" --cells --out "$out/quickstart.png"

echo "3/4  retrain the cell of Λ-DARTS from scratch"
"$python" nasbench201/train.py --arch "$out/lambda-darts" --dataset digits --cells_per_stage 1 --epochs 30 --batch_size 64 \
    --save "$out/train"

echo "4/4  test it on the held-out digits"
score=$("$python" nasbench201/test.py "$out/train")

cat <<END

Done in $((SECONDS - start)) s. Score of the cell of Λ-DARTS on the held-out digits:
  $score
DARTS and Λ-DARTS      $out/quickstart.png; docs/quickstart.md explains it
The two searches       $out/*/curves.png, metrics.csv; tensorboard --logdir $out
The trained network    $out/train/model_card.md, checkpoints/
Next, DARTS and Λ-DARTS by finite differences on 10,000 CIFAR-10 images (20 and 40 minutes on one core):
  bash scripts/collapse.sh --download
The Λ-DARTS paper's search on CIFAR-10:
  .venv/bin/python search/train_search.py --download
END
