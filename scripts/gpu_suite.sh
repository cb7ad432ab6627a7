#!/usr/bin/env bash
# Everything that needs a GPU, in at most 10 minutes: the tests with kernels compiled natively, the digits from end to end
# on the GPU, and the recover step beside published-style hooks. Results are written under $OUT (default gpu-results).
# Uses the machine's own Python ($PYTHON, default python3); wheels that it lacks are taken from .wheels/ if that exists.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
out=${OUT:-gpu-results}
mkdir -p "$out"
export PYTHONPATH=$PWD
[ ! -d .wheels ] || "$python" -m pip install --quiet --no-index --find-links .wheels tyro tomli_w

failed=0
step() { # name seconds command...: runs it within its time, keeps what it prints, goes on after a failure
    local name=$1 seconds=$2
    shift 2
    echo "== $name"
    timeout "$seconds" "$@" 2>&1 | tee "$out/$name.txt" | tail -n 15
    [ "${PIPESTATUS[0]}" = 0 ] || { echo "== $name FAILED"; failed=1; }
}

step tests 300 "$python" -m pytest tests --ignore tests/test_style.py --durations 10
step digits 90 "$python" -m fastcondense.cli run --recipe sre2l/digits-ipc10 --out "$out/digits" --train.seeds 1
for images_and_size in "100 224" "100 64"; do
    read -r images size <<<"$images_and_size"
    step "recover-step-$size" 80 "$python" benchmarks/recover_step.py --images "$images" --size "$size" --repeats 50 \
        --out "$out/recover_step.jsonl"
done
exit $failed
