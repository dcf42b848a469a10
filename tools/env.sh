# Sourced by the launch scripts: which Python to use, and where the tools are.
TOOLS="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

if [ -z "${PYTHON:-}" ]; then
    PYTHON=python
    # An environment that the user activated comes first, then the one that make built.
    if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && [ -x "$TOOLS/../.venv/bin/python" ]; then
        PYTHON="$TOOLS/../.venv/bin/python"
    fi
fi

usage() {
    echo "usage: $1" >&2
    exit 2
}

# Runs its arguments, a script of tools/ and what follows, on $GPUS processes of each of $NNODES machines.
distribute() {
    NNODES="${NNODES:-1}"
    if [ "$NNODES" = 1 ]; then
        # Any free port, so that two runs on a machine do not meet; several machines have to agree on one.
        PORT="${PORT:-$("$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')}"
    fi
    # torchrun would give each process a single thread, which on CPUs leaves cores idle.
    local share=$(($(nproc) / GPUS))
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((share > 1 ? share : 1))}"
    export MKL_NUM_THREADS="${MKL_NUM_THREADS:-$OMP_NUM_THREADS}"
    exec "$PYTHON" -m torch.distributed.run --nnodes="$NNODES" --node_rank="${NODE_RANK:-0}" \
        --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" --nproc_per_node="$GPUS" \
        "$TOOLS/$1" "${@:2}" --launcher pytorch
}

# The same as a Slurm job: $GPUS tasks, $GPUS_PER_NODE to a machine (with GPUS_PER_NODE=0, on CPUs).
submit() {
    GPUS="${GPUS:-4}"
    GPUS_PER_NODE="${GPUS_PER_NODE:-4}"
    local resources=(--ntasks="$GPUS" --cpus-per-task="${CPUS_PER_TASK:-5}")
    if [ "$GPUS_PER_NODE" != 0 ]; then
        resources+=(--gres="gpu:$GPUS_PER_NODE" --ntasks-per-node="$GPUS_PER_NODE")
    fi
    # SRUN_ARGS holds several options, so it is split on purpose.
    # shellcheck disable=SC2086
    exec srun -p "$PARTITION" --job-name="$JOB" "${resources[@]}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
        "$PYTHON" -u "$TOOLS/$1" "${@:2}" --launcher slurm
}
