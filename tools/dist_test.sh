#!/usr/bin/env bash
# Tests on several GPUs of a machine, or on several processes where it has none; on several machines as dist_train.sh:
#     bash tools/dist_test.sh CONFIG CHECKPOINT GPUS [options of test.py]
set -euo pipefail
source "$(dirname "$0")/env.sh"
[ $# -ge 3 ] || usage 'dist_test.sh CONFIG CHECKPOINT GPUS [options of test.py]'
GPUS="$3"
distribute test.py "$1" "$2" "${@:4}"
