#!/usr/bin/env bash
# Trains as a Slurm job:
#     [GPUS=8 GPUS_PER_NODE=8 CPUS_PER_TASK=5 SRUN_ARGS=...] bash tools/slurm_train.sh PARTITION JOB CONFIG [options of train.py]
set -euo pipefail
source "$(dirname "$0")/env.sh"
[ $# -ge 3 ] || usage 'slurm_train.sh PARTITION JOB CONFIG [options of train.py]'
PARTITION="$1" JOB="$2"
submit train.py "$3" "${@:4}"
