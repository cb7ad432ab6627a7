#!/usr/bin/env bash
# Makes .venv with fastcondense and what it needs; sourced or called by the other scripts. Safe to repeat: when nothing
# changed it does nothing. Usage: scripts/setup.sh [EXTRA ...], e.g. scripts/setup.sh dev ffcv
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

# A Python that we support and that can make virtual environments.
find_python() {
    for candidate in python3.11 python3.12 python3.13 python3; do
        if "$candidate" -c 'import ensurepip, sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

stamp=.venv/fastcondense-installed
extras=${*:-}
wanted="$extras $(cat pyproject.toml constraints.txt | sha256sum)"
if [ -f "$stamp" ] && grep -qxF "$wanted" "$stamp"; then
    exit 0
fi

if ! python=$(find_python); then
    if ! command -v apt-get >/dev/null; then
        echo "setup: Python 3.11 to 3.13 with venv is needed; install it and run this again" >&2
        exit 1
    fi
    echo "setup: installing Python from the distribution"
    as_root apt-get update -qq
    as_root apt-get install -y -qq --no-install-recommends python3-venv python3-pip ||
        as_root apt-get install -y -qq --no-install-recommends python3.11-venv
    if ! python=$(find_python); then
        as_root apt-get install -y -qq --no-install-recommends python3.11 python3.11-venv
        python=$(find_python)
    fi
fi

# FFCV has no wheels: pip compiles it against OpenCV, libjpeg-turbo and Python's headers.
can_compile_ffcv() {
    pkg-config --exists opencv4 libturbojpeg && command -v g++ >/dev/null &&
        [ -f "$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ]
} 2>/dev/null
if [[ " $extras " == *" ffcv "* ]] && ! can_compile_ffcv; then
    if ! command -v apt-get >/dev/null; then
        echo "setup: ffcv needs g++, pkg-config, Python's headers, OpenCV and libjpeg-turbo; install them and run this again" >&2
        exit 1
    fi
    echo "setup: installing what ffcv is compiled against (700 MB)"
    as_root apt-get update -qq
    headers=$("$python" -c 'import sys; print("python%d.%d-dev" % sys.version_info[:2])') # not always those of python3
    apt-cache show "$headers" >/dev/null 2>&1 || headers=python3-dev
    as_root apt-get install -y -qq --no-install-recommends g++ pkg-config libopencv-dev libturbojpeg0-dev "$headers"
fi

[ -x .venv/bin/python ] || "$python" -m venv .venv
echo "setup: installing fastcondense${extras:+ with $extras} into .venv (minutes the first time)"
target=.
[ -z "$extras" ] || target=".[${extras// /,}]"
.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e "$target"
echo "$wanted" >>"$stamp"
