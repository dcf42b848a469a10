#!/usr/bin/env bash
# Tests as a Slurm job:
#     [GPUS=8 GPUS_PER_NODE=8 CPUS_PER_TASK=5 SRUN_ARGS=...] bash tools/slurm_test.sh PARTITION JOB CONFIG CHECKPOINT [options]
set -euo pipefail
source "$(dirname "$0")/env.sh"
[ $# -ge 4 ] || usage 'slurm_test.sh PARTITION JOB CONFIG CHECKPOINT [options of test.py]'
PARTITION="$1" JOB="$2"
submit test.py "$3" "$4" "${@:5}"
