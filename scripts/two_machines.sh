#!/usr/bin/env bash
# Two "machines" on one host, as network namespaces, recover one run together; one of them is cut off in the middle.
# The rest finish, the one that was cut off comes back, and the images are those of one process. Then torchrun does it.
# Needs root and iproute2.
# usage: scripts/two_machines.sh [FOLDER]    what the machines say is kept there
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder=${1:-$(mktemp -d)}
mkdir -p "$folder"
python=${PYTHON:-.venv/bin/python}
flags=(--recipe sre2l/digits-ipc10 --squeeze.teachers zoo/convnet3_w32 --squeeze.epochs 4 --recover.batch-size 5
    --recover.iterations "${ITERATIONS:-600}" --device cpu)
export OMP_NUM_THREADS=1 FASTCONDENSE_PATIENCE=5

cleanup() {
    kill $(jobs -p) 2>/dev/null || true
    for name in a b; do ip netns delete "fastcondense-$name" 2>/dev/null || true; done
}
trap cleanup EXIT

ip netns add fastcondense-a
ip netns add fastcondense-b
ip link add cable-a netns fastcondense-a type veth peer name cable-b netns fastcondense-b
for name in a b; do
    ip -n "fastcondense-$name" link set lo up
    ip -n "fastcondense-$name" link set "cable-$name" up
done
ip -n fastcondense-a address add 10.77.0.1/24 dev cable-a
ip -n fastcondense-b address add 10.77.0.2/24 dev cable-b

machine() { # NAME ADDRESS LOG
    ip netns exec "fastcondense-$1" "$python" -m fastcondense.cli recover "${flags[@]}" --out "$folder/run" \
        --gpus 0 --workers 1 --nodes 1:2 --rendezvous 10.77.0.1:29400 --address "$2" >"$folder/$3.log" 2>&1
}

torchrun_machine() { # NAME ADDRESS IS_FIRST: namespaces share the name by which torchrun would know the first machine
    ip netns exec "fastcondense-$1" env GLOO_SOCKET_IFNAME="cable-$1" "$python" -m torch.distributed.run --nnodes 2 \
        --nproc-per-node 1 --rdzv-backend c10d --rdzv-endpoint 10.77.0.1:29401 --local-addr "$2" \
        --rdzv-conf is_host="$3" -m fastcondense.cli recover "${flags[@]}" --out "$folder/torchrun" >"$folder/torchrun-$1.log" 2>&1
}

shards() { find "$folder/run/condensed" -name 'shard-*' 2>/dev/null | wc -l; }

echo "one process alone"
"$python" -m fastcondense.cli recover "${flags[@]}" --out "$folder/alone" >"$folder/alone.log"

echo "machines a and b together"
machine a 10.77.0.1 a &
first=$!
machine b 10.77.0.2 b &
second=$!
until [ "$(shards)" -ge 3 ]; do sleep 0.2; done

echo "the cable of b is pulled after $(shards) jobs"
ip -n fastcondense-b link set cable-b down
if wait "$second"; then echo "b ended as if nothing had happened"; else echo "b: status $?: $(tail -1 "$folder/b.log")"; fi
echo "b has ended after $(shards) jobs, and is plugged in again"
ip -n fastcondense-b link set cable-b up
machine b 10.77.0.2 b-again &
second=$!
wait "$first"
wait "$second" || { cat "$folder/b-again.log"; exit 1; }
echo "$(shards) jobs are finished"

echo "the same by torchrun"
torchrun_machine a 10.77.0.1 1 &
first=$!
torchrun_machine b 10.77.0.2 0 || { cat "$folder/torchrun-b.log"; exit 1; }
wait "$first"

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
