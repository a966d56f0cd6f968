#!/usr/bin/env bash
# The tests marked cuda, and what training costs, on a machine with a GPU: under eight minutes, one JSON object on
# stdout, all else on stderr. Before: pip install -e ".[dev]". Without a GPU it does on the CPU what it can, in small,
# and says what it left out.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python="${PYTHON:-python}"
began="$(date +%s)"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
export TORCHINDUCTOR_CACHE_DIR="$work/inductor" # empty, so that the time to compile is that of the first time

if "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    device=cuda tests=210 seconds=420 chosen=()
else
    device=cpu tests=90 seconds=170 chosen=(-k 'not always and not compiled')
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # several threads would wait for each other where others compute too
fi

# COLUMNS: the reason of a failure on one line. timeout: what has been printed by then counts.
mapfile -t files < <(grep -lr --include='*.py' 'mark\.cuda' tests)
VAE_TEST_DEVICE="$device" COLUMNS=400 timeout --kill-after=10 "$tests" \
    "$python" -m pytest "${files[@]}" -v -m cuda "${chosen[@]}" --tb=short --show-capture=no -p no:cacheprovider 2>&1 |
    tee "$work/tests.log" >&2 || true

"$python" benchmarks/gpu.py --began "$began" --seconds "$seconds" --tests "$work/tests.log"
