#!/usr/bin/env bash
# Trains, or segments images, on all workers of a Cloud TPU VM, from a machine with gcloud:
#
#     export TPU_NAME=my-tpu ZONE=us-central2-b PROJECT=my-project
#     launch/tpu_vm.sh setup
#     launch/tpu_vm.sh train --config=configs/panet_vgg16.py --workdir=/mnt/shared/runs/panet
#     launch/tpu_vm.sh predict --workdir=/mnt/shared/runs/panet --support=... --query=... --out=...
#     launch/tpu_vm.sh log       # follows what worker 0 prints; Ctrl-C ends only the following
#     launch/tpu_vm.sh status    # whether it runs, or how it ended, on each worker
#     launch/tpu_vm.sh stop      # saves a checkpoint; the same command continues. A second stop
#                                # meanwhile ends it without
#
# Prerequisites:
# - The TPU exists (this script creates and deletes nothing):
#       gcloud compute tpus tpu-vm create "$TPU_NAME" --zone="$ZONE" --project="$PROJECT" \
#           --accelerator-type=v4-16 --version=tpu-ubuntu2204-base
# - gcloud is logged in and its SSH key is loaded (ssh-add ~/.ssh/google_compute_engine), which
#   several workers need. The workers reach the internet, for setup and pretrained weights.
# - With several workers, --workdir (--out of predict) and the data lie on a disk that all of them have mounted at the
#   same path: Filestore, or a bucket by gcsfuse that can rename folders (one with hierarchical
#   namespace, or --rename-dir-limit). gs:// paths are not supported. With a single worker any
#   folder does.
#
# Neither depends on the connection: it runs detached, with its output in fsseg_jax/run.log in
# the home folder of each worker.

set -euo pipefail

fail() {
    echo "error: $1" >&2
    exit 2
}

# Runs a command on workers: on_workers all|NUMBER COMMAND
on_workers() {
    gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone="$ZONE" --project="$PROJECT" \
        --worker="$1" --command="$2"
}

setup() {
    archive=$(mktemp -d)/fsseg_jax.tar.gz
    trap 'rm -r "$(dirname "$archive")"' EXIT
    tar -C "$(dirname "$0")/.." --exclude=__pycache__ -czf "$archive" \
        pyproject.toml README.md LICENSE fsseg_jax configs launch
    gcloud compute tpus tpu-vm scp "$archive" "$TPU_NAME:fsseg_jax.tar.gz" \
        --zone="$ZONE" --project="$PROJECT" --worker=all
    # uv brings a Python that is new enough, which the images of TPU VMs may not have.
    # shellcheck disable=SC2016 # $HOME is the worker's
    on_workers all 'set -e
        mkdir -p fsseg_jax && tar -C fsseg_jax -xzf fsseg_jax.tar.gz && cd fsseg_jax
        export PATH="$HOME/.local/bin:$PATH"
        command -v uv > /dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
        test -d .venv || uv venv --python 3.12 .venv
        uv pip install --python .venv/bin/python -e ".[tpu,tfdata]"'
}

run() {
    local program=$1 options
    shift
    [ $# -gt 0 ] || fail "there are no options: launch/tpu_vm.sh $program --workdir=DIR ..."
    printf -v options ' %q' --config.distributed=True --config.platform=tpu "$@"
    # The number of the process is for status and stop; its shell writes down how it ended.
    on_workers all "cd fsseg_jax || exit 1
        if [ -f run.pid ] && kill -0 \$(cat run.pid) 2> /dev/null; then
            echo \"error: something runs already on \$(hostname): launch/tpu_vm.sh stop\" >&2
            exit 2
        fi
        cat > run.sh << 'END'
.venv/bin/python -m fsseg_jax.$program$options &
echo \$! > run.pid
wait \$!
echo \"ended with status \$?\"
rm run.pid
END
        setsid bash run.sh >> run.log 2>&1 < /dev/null &"
}

# shellcheck disable=SC2016 # in the workers' commands $ is the workers'
case "${1:-}" in
    setup | train | predict | log | status | stop)
        for name in TPU_NAME ZONE PROJECT; do
            [ -n "${!name:-}" ] || fail "$name is not set: export TPU_NAME, ZONE and PROJECT."
        done
        command -v gcloud > /dev/null || fail "gcloud is not installed: see cloud.google.com/sdk."
        ;;
    *) fail "say what to do: launch/tpu_vm.sh setup, train, predict, log, status or stop." ;;
esac
# shellcheck disable=SC2016
case "$1" in
    setup) setup ;;
    train | predict) run "$@" ;;
    log) on_workers 0 'tail -n 50 -F fsseg_jax/run.log' ;;
    status)
        on_workers all 'cd fsseg_jax
            if [ -f run.pid ] && kill -0 $(cat run.pid) 2> /dev/null
            then state=running; else state="not running"; fi
            echo "$(hostname): $state; $(tail -n 1 run.log 2> /dev/null)"'
        ;;
    stop)
        # The file may be gone, since the others stop as soon as one worker has been asked to.
        on_workers all 'cd fsseg_jax
            if pid=$(cat run.pid 2> /dev/null) && kill -TERM $pid 2> /dev/null
            then while [ -f run.pid ]; do sleep 1; done; fi
            echo "$(hostname): $(tail -n 1 run.log 2> /dev/null)"'
        ;;
esac
