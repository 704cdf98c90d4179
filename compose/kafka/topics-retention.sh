#!/bin/bash
# Gives the webhooks' topics their retention. Safe to repeat.
#
# A worker refuses to start if retention, a segment's length and its --replay-window together are longer than its
# --inbox-retention: 7 days by default.
set -euo pipefail
for topic in orders.webhooks disputes.webhooks; do
    /opt/kafka/bin/kafka-configs.sh --bootstrap-server "$BOOTSTRAP" --alter --topic "$topic" \
        --add-config "retention.ms=$RETENTION_MS,segment.ms=$SEGMENT_MS"
done
