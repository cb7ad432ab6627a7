#!/usr/bin/env bash
# Installs fastcondense with its development tools and optional libraries, and runs linters, type checker and tests.
# Options are passed on to pytest, e.g.  bash scripts/test.sh -k windows
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh dev docs ffcv dali hf
exec .venv/bin/python -m pytest -n 2 --dist loadfile "$@"
