#!/usr/bin/env bash
# Trains on several GPUs of a machine, or on several processes where it has none:
#     bash tools/dist_train.sh CONFIG GPUS [options of train.py]
# On several machines, on each: NNODES=2 NODE_RANK=0 MASTER_ADDR=... PORT=... bash tools/dist_train.sh CONFIG GPUS
set -euo pipefail
source "$(dirname "$0")/env.sh"
[ $# -ge 2 ] || usage 'dist_train.sh CONFIG GPUS [options of train.py]'
GPUS="$2"
distribute train.py "$1" "${@:3}"
