#!/usr/bin/env bash
# Two "machines" on one host, as network namespaces, recover one run: b helps a, is killed in the middle, and comes back.
# No network is needed for that but the disk that both see. Then torchrun starts both, over a cable, and they train a
# student together. The images are those of one process. Needs root and iproute2.
# usage: scripts/two_machines.sh [FOLDER]    what the machines say is kept there
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder=${1:-$(mktemp -d)}
mkdir -p "$folder"
python=${PYTHON:-.venv/bin/python}
flags=(--recipe sre2l/digits-ipc10 --squeeze.teachers zoo/convnet3_w32 --squeeze.epochs 4 --recover.batch-size 5
    --recover.iterations "${ITERATIONS:-600}" --train.epochs 20 --train.seeds 1 --evaluate.baselines --device cpu)
export OMP_NUM_THREADS=1 FASTCONDENSE_PATIENCE=5

cleanup() {
    kill $(jobs -p) 2>/dev/null || true
    for name in a b; do ip netns delete "fastcondense-$name" 2>/dev/null || true; done
}
trap cleanup EXIT

ip netns add fastcondense-a
ip netns add fastcondense-b
ip link add cable-a netns fastcondense-a type veth peer name cable-b netns fastcondense-b
for name in a b; do ip -n "fastcondense-$name" link set lo up; done

machine() { # NAME LOG: without a cable
    exec ip netns exec "fastcondense-$1" unshare --uts sh -c 'hostname "$0" && exec "$@"' "machine-$1" \
        "$python" -m fastcondense.cli recover "${flags[@]}" --out "$folder/run" >"$folder/$2.log" 2>&1
}

torchrun_machine() { # NAME ADDRESS IS_FIRST: namespaces share the name by which torchrun would know the first machine
    ip netns exec "fastcondense-$1" env GLOO_SOCKET_IFNAME="cable-$1" "$python" -m torch.distributed.run --nnodes 2 \
        --nproc-per-node 1 --rdzv-backend c10d --rdzv-endpoint 10.77.0.1:29401 --local-addr "$2" --rdzv-conf is_host="$3" \
        -m fastcondense.cli run "${flags[@]}" --out "$folder/torchrun" >"$folder/torchrun-$1.log" 2>&1
}

shards() { find "$folder/run/condensed" -name 'shard-*' 2>/dev/null | wc -l; }

echo "one process alone"
"$python" -m fastcondense.cli recover "${flags[@]}" --out "$folder/alone" >"$folder/alone.log"

echo "machine b helps a"
machine a a &
first=$!
until [ -e "$folder/run/recipe.toml" ]; do sleep 0.2; done
machine b b &
second=$!
until [ "$(shards)" -ge 3 ] && grep -q '"working"' "$folder"/run/log-0-machine-b-*.jsonl; do sleep 0.2; done

kill -KILL "$second"
wait "$second" 2>/dev/null || true
echo "b was killed after $(shards) jobs, and is started again"
machine b b-again &
second=$!
wait "$first"
wait "$second" || { cat "$folder/b-again.log"; exit 1; }
tail -1 "$folder/b-again.log"
echo "$(shards) jobs are finished"

echo "torchrun, with students that both train"
for name in a b; do ip -n "fastcondense-$name" link set "cable-$name" up; done
ip -n fastcondense-a address add 10.77.0.1/24 dev cable-a
ip -n fastcondense-b address add 10.77.0.2/24 dev cable-b
torchrun_machine a 10.77.0.1 1 &
first=$!
torchrun_machine b 10.77.0.2 0 || { cat "$folder/torchrun-b.log"; exit 1; }
wait "$first"
grep 'epoch 20 of 20' "$folder/torchrun-a.log"

"$python" - "$folder" <<'PYTHON'
import sys
from pathlib import Path

from safetensors.numpy import load_file

alone, *others = (sorted((Path(sys.argv[1]) / name / "condensed").glob("shard-*")) for name in ("alone", "run", "torchrun"))
for run in others:
    assert [path.name for path in alone] == [path.name for path in run] and alone
    for one, other in zip(map(load_file, alone), map(load_file, run)):
        for key in ("images", "losses", "classes", "slots"):
            assert one[key].tobytes() == other[key].tobytes(), key
print(f"all {len(alone)} jobs of both runs have the bits of one process")
PYTHON
