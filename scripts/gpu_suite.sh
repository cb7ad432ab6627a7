#!/usr/bin/env bash
# Everything that needs a GPU, in one call of at most 570 seconds: what convinces most comes first. Every part has a limit,
# and a line of results is on disk as soon as it is known; where tests fail, lines are marked, not left out.
# Results: benchmarks/results/<gpu>/<date>-<commit>.jsonl, each line with its environment; $OUT (default gpu-results) has
# a copy, log.txt and summary.txt. Uses the machine's own Python ($PYTHON, default python3), to which the wheels in .wheels/
# are added if there are any. $PEERS: published repositories (benchmarks/published/repository.py), default
# ../shared/published; $DATA: CIFAR-10 and its teacher with their unpack.py, default ../shared/data: both may be missing.
# $COMMIT names the commit where there is no git; $ONLY is a pattern of the parts to run (default: all of them).
# --dry-run: the same parts, small, to try the script without a GPU; --plan: prints each part and its limit, and runs none.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
out=${OUT:-gpu-results}
peers=${PEERS:-../shared/published}
data=${DATA:-../shared/data}
mode=${1:-}
seconds=570 slower=1
export PYTHONPATH=$PWD:$PWD/benchmarks PYTHONUNBUFFERED=1
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
log=$out/log.txt summary=$out/summary.txt

failed=0 needs=
# name limit command...: runs it within its time and what is left of all, all of which `limit+` may take; goes on after a
# failure. needs: a folder without which it is skipped.
part() {
    local name=$1 limit=$((${2%+} * slower)) start=$SECONDS left=$((seconds - SECONDS)) code
    [[ $2 != *+ ]] || limit=$((left > limit ? left : limit))
    [ "$mode" != --plan ] || echo "$1 ${2%+}"
    shift 2
    [ "$mode" != --plan ] || return 0
    [[ $name =~ ${ONLY:-.} ]] || return 0
    [ "$limit" -le "$left" ] || limit=$left
    if [ "$limit" -lt 5 ]; then
        echo "$name: no time left" | tee -a "$summary"
        failed=1
        return
    fi
    if [ -n "$needs" ] && [ ! -d "$needs" ]; then
        echo "$name: skipped, there is no folder $needs" | tee -a "$summary"
        return
    fi
    echo "== $name" | tee -a "$log"
    timeout --kill-after 2 "$limit" "$@" 2>&1 | tee -a "$log" | tail -n 40
    code=${PIPESTATUS[0]}
    case $code in
    0) echo "$name: $((SECONDS - start)) s" ;;
    124 | 137) echo "$name: CUT OFF after $limit s" ;;
    *) echo "$name: FAILED ($code) after $((SECONDS - start)) s" ;;
    esac >>"$summary"
    [ "$code" = 0 ] || failed=1
    [ "$results" -ef "$out/results.jsonl" ] || cp "$results" "$out/results.jsonl" 2>/dev/null || true
}

kernels=(--variants ours eager) step=(--images 100 --size 224 --repeats 40) published=(--methods sre2l edc --repeats 10)
labels=(--repeats 30) train=() precision=bf16 gate_workers=8 more=()
for path in tests/test_kernel_*.py; do
    name=${path#tests/test_}
    [ "$name" = kernel_compile.py ] || more+=("${name%.py}")
done
short=(--train.seeds 1 --train.epochs 10 --squeeze.epochs 5 --squeeze.self_supervision.epochs 5 --recover.iterations 40)
cifar=(--recover.iterations 500 --train.epochs 100 --train.seeds 1)
methods=(edc gvbsm cvdd fadrm-plus lpld cim scdd)
if [ "$mode" = --dry-run ]; then
    slower=20 seconds=1400 gate_workers=1 more=(pixel_adam)
    kernels+=(--operators pixel_adam --quick)
    step=(--quick --no-gate) published=("${step[@]}") labels=("${step[@]}") train=("${step[@]}") precision=fp32
    cifar=(--recover.iterations 2 --train.epochs 1 --train.seeds 1 --train.student zoo/convnet3_w32)
    short=(--train.seeds 1 --train.epochs 1 --squeeze.epochs 1 --squeeze.self_supervision.epochs 1)
    short+=(--squeeze.probe.epochs 1 --squeeze.gate_images 0 --recover.iterations 2)
    methods=(edc)
fi
gated=(recover peers kernels labels train)
[ "$mode" != --dry-run ] || gated=()

if [ "$mode" != --plan ]; then
    mkdir -p "$out"
    : >"$log"
    : >"$summary"
    if compgen -G ".wheels/*.whl" >/dev/null && ! "$python" -m pip install --quiet --no-index --no-deps .wheels/*.whl; then
        echo "gpu_suite: the wheels in .wheels/ cannot be installed for $python" >&2
        exit 1
    fi
    "$python" scripts/check_machine.py 2>&1 | tee -a "$log"
    [ "${PIPESTATUS[0]}" = 0 ] || exit 1
    results=$out/results.jsonl
    [ "$mode" = --dry-run ] || results=$("$python" -c 'import runner; print(runner.default_out())') || exit 1
fi

bench=("$python" benchmarks/runner.py) # which is what `fastcondense bench` calls
to=(--out "${results:-}" --tested "$scratch/tested.json") # tests that one part has run are not run again by the next
eager=(plain plain-channels_last plain-bf16 published published-bf16 ours-unmatched ours-fp32 ours-tf32 ours-bf16)
eager+=(ours-bf16-fastest ours-bf16-eager)
[ "$mode" != --dry-run ] || eager=(plain published ours-fp32)

part copy 20 "$python" -c 'import fastcondense, measure; print(f"a copy moves {measure.copy_ceiling():.0f} GB/s")'
part graphs 60 "$python" -m pytest -p no:cacheprovider tests/test_graph.py tests/test_prefetch.py tests/test_resident.py
part kernel-tests 75 "$python" benchmarks/gate.py --record "$scratch/tested.json" --workers "$gate_workers" --seconds 70 \
    --more "${more[@]}" -- ${gated[@]+"${gated[@]}"}
for statistics in sre2l edc; do
    part "recover-$statistics" 60 "${bench[@]}" recover --statistics "$statistics" "${step[@]}" --variants "${eager[@]}" \
        "${to[@]}"
done
needs=$peers part published 90 "${bench[@]}" peers --peers "$peers" "${published[@]}" "${to[@]}"
part kernels 60 "${bench[@]}" kernels "${kernels[@]}" "${to[@]}"
needs=$data part cifar10 60 bash -c '
    "$0" "$1/unpack.py" "$2" cifar10 && "$0" -m fastcondense.cli run --recipe sre2l/cifar10-ipc10 --data "$2/cifar10" \
        --out "$2/run" --squeeze.teachers zoo/resnet20 --squeeze.weights "$1/cifar10_resnet20.th" \
        --dataset.mean 0.485 0.456 0.406 --dataset.std 0.229 0.224 0.225 "${@:4}" && cp "$2/run/result.json" "$3"
' "$python" "$data" "$scratch" "$out/cifar10.json" "${cifar[@]}"
part labels 25 "${bench[@]}" labels "${labels[@]}" --precision "$precision" "${to[@]}"
part train 20 "${bench[@]}" train "${train[@]}" "${to[@]}"
part profile 20 "${bench[@]}" recover "${step[@]}" --profile "$out/trace.json" --precision "$precision" "${to[@]}"
for method in "${methods[@]}"; do
    part "digits-$method" 2+ "$python" -m fastcondense.cli run --recipe "$method/digits-ipc10" --out "$scratch/$method" \
        "${short[@]}"
done
part compiled 6+ "${bench[@]}" recover "${step[@]}" --variants plain-bf16 compiled ours-bf16 "${to[@]}"
[ "$mode" != --plan ] || exit 0

echo "$(cat "$results" 2>/dev/null | wc -l) lines in $results, $SECONDS s" >>"$summary"
echo "== summary"
cat "$summary"
exit $failed
