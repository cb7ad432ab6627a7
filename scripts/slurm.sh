#!/usr/bin/env bash
# A Slurm job: one launcher a machine, with all of its GPUs.
# usage: sbatch [--nodes N] scripts/slurm.sh STAGE --recipe NAME --data DIR [...]
#SBATCH --nodes 2
#SBATCH --ntasks-per-node 1
#SBATCH --gpus-per-node 8
#SBATCH --requeue
#SBATCH --open-mode append
#SBATCH --signal TERM@60
set -uo pipefail
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -1)
srun --kill-on-bad-exit 0 fastcondense "$@" \
    --gpus "${SLURM_GPUS_ON_NODE:-8}" --nodes "$SLURM_NNODES" --rendezvous "$first:29500"
status=$?
if [ "$status" = 143 ]; then # SIGTERM, a minute before the time is over: what was in hand is saved
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
