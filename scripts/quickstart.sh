#!/usr/bin/env bash
# Installs fastcondense and condenses scikit-learn's handwritten digits to 10 images a class: real scans, no download.
# Options are passed on, e.g.  bash scripts/quickstart.sh --ipc 1
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
exec .venv/bin/fastcondense run --recipe sre2l/digits-ipc10 "$@"
