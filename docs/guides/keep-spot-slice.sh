#!/bin/bash
# Train on a spot TPU slice until the run is complete: request a slice, start the same command on all of its hosts,
# and request another slice when that one is taken away. Set the variables below, or in the environment, and run this
# where gcloud is logged in (Cloud Shell, or a small VM in tmux). See docs/guides/tpu.md.
set -u

NAME=${NAME:-redimnet}
ZONE=${ZONE:-us-west4-a}
TYPE=${TYPE:-v5litepod-16}
RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite}
WORKDIR=${WORKDIR:?set WORKDIR to the folder of the run in a bucket, gs://BUCKET/runs/NAME}
INSTALL=${INSTALL:?set INSTALL to the command that installs the package on a new host}
TRAIN=${TRAIN:?set TRAIN to the command that trains, with --distributed and the same --workdir}
PAUSE=${PAUSE:-60}
ATTEMPTS=${ATTEMPTS:-3}  # failures on one slice that was not taken away, after which something else is wrong

state() { gcloud compute tpus queued-resources describe "$NAME" --zone="$ZONE" --format="value(state.state)" 2>/dev/null; }
on_all() { gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="$1"; }
complete() { gcloud storage ls "$WORKDIR/results.json" >/dev/null 2>&1; }
remove() { gcloud compute tpus queued-resources delete "$NAME" --zone="$ZONE" --force --quiet; }

installed=no
failures=0
while ! complete; do
    now=$(state)
    case "$now" in
        "")
            echo "requesting $TYPE"
            gcloud compute tpus queued-resources create "$NAME" --node-id="$NAME" --zone="$ZONE" \
                --accelerator-type="$TYPE" --runtime-version="$RUNTIME" --spot || sleep "$PAUSE"
            installed=no
            failures=0
            ;;
        ACTIVE)
            if [ "$installed" = no ] && on_all "$INSTALL"; then installed=yes; fi
            if [ "$installed" = yes ] && on_all "$TRAIN"; then failures=0; else failures=$((failures + 1)); fi
            complete && break
            # A slice that is taken away stays ACTIVE for a moment after its hosts are gone.
            sleep "$PAUSE"
            if [ "$(state)" != ACTIVE ]; then failures=0; fi
            if [ "$failures" -ge "$ATTEMPTS" ]; then
                echo "the command failed $failures times on a slice that is still there; mend it and start this again" >&2
                exit 1
            fi
            ;;
        SUSPENDED | FAILED)
            echo "the slice is gone ($now)"
            remove || sleep "$PAUSE"
            ;;
        *)
            echo "waiting: $now"
            sleep "$PAUSE"
            ;;
    esac
done
echo "complete: $WORKDIR"
remove
