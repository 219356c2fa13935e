#!/usr/bin/env bash
# Trains, or segments images, on the GPUs of one or more nodes of a SLURM cluster:
#
#     sbatch launch/slurm.sh --config=configs/panet_vgg16.py --workdir=/shared/runs/panet
#     sbatch launch/slurm.sh predict --workdir=/shared/runs/panet --support=/shared/support \
#         --query=/shared/images.txt --out=/shared/out
#
# Prerequisites:
# - The repository, its environment, the data and --workdir (--out) lie where all nodes see them.
# - Submit from the repository's folder with the environment active, or with it in .venv.
# - Adapt the lines below, or override them: sbatch --nodes=2 --time=12:00:00 launch/slurm.sh ...
#
# One task runs per GPU, since JAX on SLURM has each task use one GPU, the one of its number on the
# node; one task per node would leave all but the first GPU idle. So --ntasks-per-node must be the
# number of GPUs of a node, and each task must see all of them: do not use --gpus-per-task.
#
# Two minutes before the time limit all tasks get SIGTERM, save one checkpoint together and exit
# with 143 (predict ends at once): the job then goes back to the queue and continues where it was. SLURM requeues it as
# well when a node fails or the job is preempted; any other failure ends it, and the same sbatch
# command continues from the last checkpoint. To stop for good, with a checkpoint:
#
#     scontrol update JobId=ID Requeue=0 && scancel --signal=TERM ID

#SBATCH --job-name=fsseg_jax
#SBATCH --nodes=1
#SBATCH --gres=gpu:4
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append

set -u

program=train
case "${1:-}" in
    train | predict)
        program=$1
        shift
        ;;
esac
if [ $# -eq 0 ]; then
    echo "error: there are no options: sbatch launch/slurm.sh --config=FILE --workdir=DIR" >&2
    exit 2
fi
if [ -z "${SLURM_JOB_ID:-}" ]; then
    echo "error: this is not a SLURM job: start it by sbatch launch/slurm.sh $*" >&2
    exit 2
fi

if [ -f .venv/bin/activate ]; then
    # shellcheck source=/dev/null
    . .venv/bin/activate
fi

# Behind a proxy for the internet, the tasks would look for each other there and never meet.
if [ -n "${http_proxy:-}${https_proxy:-}${grpc_proxy:-}" ]; then
    no_grpc_proxy=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | paste -sd, -)
    export no_grpc_proxy
fi

# A task that waits for one that has died never ends: --kill-on-bad-exit ends all of them. srun
# does not take the number of CPUs over from sbatch.
srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --gpu-bind=none \
    python -m "fsseg_jax.$program" --config.distributed=True --config.platform=gpu "$@"
status=$?

if [ "$status" -eq 143 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
