#!/usr/bin/env bash
# Installs fastcondense and condenses scikit-learn's handwritten digits, real scans, no download: to one image a class by a
# recipe of our own, and to ten by SRe2L's. Options go to both, e.g.  bash scripts/quickstart.sh --seed 1
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
for recipe in fastcondense/digits-ipc1 sre2l/digits-ipc10; do
    .venv/bin/fastcondense run --recipe "$recipe" "$@"
done
