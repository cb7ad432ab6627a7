#!/usr/bin/env bash
# A Slurm job: one process a GPU, on all machines; the run's folder is on a disk that all of them see.
# usage: sbatch [--nodes N] scripts/slurm.sh STAGE --recipe NAME --data DIR [...]
#SBATCH --nodes 2
#SBATCH --ntasks-per-node 8
#SBATCH --gpus-per-node 8
#SBATCH --requeue
#SBATCH --open-mode append
#SBATCH --signal TERM@60
set -uo pipefail
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -1)
export MASTER_ADDR MASTER_PORT=29500
# PyTorch's names for Slurm's numbers; if one process dies, the others are told to end
srun --kill-on-bad-exit 1 bash -c \
    'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS exec fastcondense "$@"' fastcondense "$@"
status=$?
if [ "$status" -gt 128 ]; then # a signal: the minute before the time is over, or a process that was killed
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
