#!/usr/bin/env bash
# Everything that needs a GPU, in at most 10 minutes: kernel tests run natively, benchmarks, the digits from end to end.
# Writes $OUT (default gpu-results): results.jsonl, one line a figure, each with its environment; log.txt; summary.txt.
# The most valuable part comes first, every part has a time limit, and results are on disk as soon as they are known.
# Uses the machine's own Python ($PYTHON, default python3), to which the wheels in .wheels/ are added if there are any.
# $COMMIT names the commit where there is no git; $ONLY is a pattern of the parts to run (default: all of them).
# --dry-run: the same parts, small, to try the script without a GPU.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
out=${OUT:-gpu-results}
seconds=590
mkdir -p "$out"
results=$out/results.jsonl
log=$out/log.txt
summary=$out/summary.txt
: >"$log"
: >"$summary"
: >"$results"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export PYTHONPATH=$PWD:$PWD/benchmarks PYTHONUNBUFFERED=1
[ ! -d .wheels ] || "$python" -m pip install --quiet --no-index --no-deps .wheels/*.whl

failed=0
part() { # name limit command...: runs it within its time and what is left of all, and goes on after a failure
    local name=$1 limit=$2 start=$SECONDS left=$((seconds - SECONDS)) code
    shift 2
    [[ $name =~ ${ONLY:-.} ]] || return 0
    [ "$limit" -le "$left" ] || limit=$left
    if [ "$limit" -lt 5 ]; then
        echo "$name: no time left" | tee -a "$summary"
        failed=1
        return
    fi
    echo "== $name" | tee -a "$log"
    timeout --kill-after 5 "$limit" "$@" 2>&1 | tee -a "$log" | tail -n 40
    code=${PIPESTATUS[0]}
    case $code in
    0) echo "$name: $((SECONDS - start)) s" ;;
    124 | 137) echo "$name: CUT OFF after $limit s" ;;
    *) echo "$name: FAILED ($code) after $((SECONDS - start)) s" ;;
    esac >>"$summary"
    [ "$code" = 0 ] || failed=1
}

mapfile -t kernel_tests < <(ls tests/test_kernel_*.py | grep -v compile)
short=(--train.seeds 1 --train.epochs 10 --squeeze.epochs 5 --squeeze.self_supervision.epochs 5 --recover.iterations 40)
kernels=() step=(--images 100 --size 224 --repeats 40) traffic=() train=() precision=bf16
labels=(--repeats 30) imagenet=(--images 10000 --batch-size 1024)
runs=(--recipes sre2l/digits-ipc10 --change train.seeds=1)
rest=(tests --ignore tests/test_style.py --ignore tests/test_kernel_compile.py)
workers=(--gpus 1)
if [ "${1:-}" = --dry-run ]; then
    kernel_tests=(tests/test_kernel_pixel_adam.py)
    kernels=(--operators pixel_adam --repeats 3 --warmup 1)
    step=(--images 2 --size 32 --repeats 3 --warmup 1 --network zoo/resnet20) precision=fp32
    traffic=(--quick) train=(--quick) runs=(--quick)
    labels=(--network zoo/resnet20 --images 16 --size 16 --batch-size 8 --classes 10 --workers 1)
    labels+=(--repeats 2 --warmup 1 --epoch-repeats 2)
    imagenet=("${labels[@]}")
    short=(--train.seeds 1 --train.epochs 1 --squeeze.epochs 1 --squeeze.self_supervision.epochs 1 --squeeze.probe.epochs 1)
    short+=(--squeeze.gate_images 0 --recover.iterations 2)
    rest=(tests/test_measure.py)
    workers=(--gpus 0 --workers 2)
fi
bench=("$python" benchmarks/runner.py) # which is what `fastcondense bench` calls
to=(--out "$results" --tested "$scratch/tested.json") # tests that one benchmark has run are not run again by the next
uncompiled=(plain plain-channels_last plain-bf16 published published-bf16)
uncompiled+=(ours-unmatched ours-fp32 ours-tf32 ours-bf16 ours-bf16-eager)

part kernel-tests 120 "$python" -m pytest "${kernel_tests[@]}"
part kernels 200 "${bench[@]}" kernels "${kernels[@]}" "${to[@]}"
for statistics in sre2l edc; do
    part "recover-$statistics" 75 "${bench[@]}" recover --statistics "$statistics" "${step[@]}" \
        --variants "${uncompiled[@]}" "${to[@]}"
    part "profile-$statistics" 45 "${bench[@]}" recover --statistics "$statistics" "${step[@]}" \
        --profile "$out/trace.json" --precision "$precision" "${to[@]}"
done
part train 120 "${bench[@]}" train "${train[@]}" "${to[@]}"
for precision in bf16 tf32; do
    part "labels-$precision" 60 "${bench[@]}" labels "${labels[@]}" --precision "$precision" "${to[@]}"
done
part labels-imagenet 60 "${bench[@]}" labels "${imagenet[@]}" --extrapolate "${to[@]}"
part end-to-end 150 "${bench[@]}" end-to-end "${runs[@]}" "${to[@]}"
for method in edc gvbsm cvdd fadrm-plus lpld cim scdd; do
    part "digits-$method" 25 "$python" -m fastcondense.cli run --recipe "$method/digits-ipc10" --out "$scratch/$method" \
        "${short[@]}"
done
part gpus 40 "$python" -m fastcondense.cli recover --recipe sre2l/digits-ipc10 --out "$scratch/gpus" "${workers[@]}" \
    "${short[@]}"
part traffic 60 "${bench[@]}" traffic "${traffic[@]}" "${to[@]}"
for statistics in sre2l edc; do
    part "recover-$statistics-compiled" 150 "${bench[@]}" recover --statistics "$statistics" \
        "${step[@]}" --variants plain{,-channels_last,-bf16} published compiled ours-{tf32,bf16} "${to[@]}"
done
part all-tests "$seconds" "$python" -m pytest "${rest[@]}"

echo "$(wc -l <"$results") lines of results, $SECONDS s" >>"$summary"
echo "== summary"
cat "$summary"
exit $failed
