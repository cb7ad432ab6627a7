#!/usr/bin/env bash
# A Slurm job: one process a GPU, on all machines; the run's folder is on a disk that all of them see.
# usage, in the checkout: sbatch [--nodes N] [--time T] scripts/slurm.sh STAGE --recipe NAME --data DIR [...]
# The environment is .venv there, or the one that FASTCONDENSE_VENV names. sbatch's own flags win over these lines:
#SBATCH --job-name fastcondense
#SBATCH --nodes 1
#SBATCH --ntasks-per-node 8
#SBATCH --gpus-per-node 8
#SBATCH --cpus-per-task 8
#SBATCH --time 24:00:00
#SBATCH --requeue
#SBATCH --open-mode append
#SBATCH --signal B:USR1@120
set -uo pipefail
venv=${FASTCONDENSE_VENV:-${SLURM_SUBMIT_DIR:-.}/.venv}
if [ -f "$venv/bin/activate" ]; then
    # shellcheck disable=SC1091
    . "$venv/bin/activate"
fi
if ! command -v fastcondense >/dev/null; then
    echo "slurm.sh: there is no fastcondense in $venv; make it (scripts/setup.sh), or name another by FASTCONDENSE_VENV" >&2
    exit 1
fi
# This script runs on the first machine: its name, and a port that is free there
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -1)
MASTER_PORT=$(python -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
export MASTER_ADDR MASTER_PORT

# Slurm sends USR1 to this script alone, two minutes before the time is over: the processes save what they have in hand, and
# the job waits in the queue again. After a lost machine or a preemption Slurm requeues it by itself (--requeue); after a
# failure and scancel nobody does.
is_over=
srun_process=
end_in_time() {
    is_over=1
    [ -z "$srun_process" ] || kill -TERM "$srun_process" 2>/dev/null
}
trap end_in_time USR1

# PyTorch's names for Slurm's numbers; if one process dies, the others are told to end. srun does not take the number of CPUs
# from the job by itself
srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" bash -c \
    'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS exec fastcondense "$@"' fastcondense "$@" &
srun_process=$!
[ -z "$is_over" ] || end_in_time
wait "$srun_process"
status=$?
while kill -0 "$srun_process" 2>/dev/null; do # the signal has ended the first wait
    wait "$srun_process"
    status=$?
done
if [ -n "$is_over" ] && [ "$status" -ne 0 ]; then
    echo "slurm.sh: the time is over; the job is queued again, and goes on from here"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
