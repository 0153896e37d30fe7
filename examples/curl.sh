#!/bin/sh
# Calls to copy, one for each way in; they need a running service: make serve
set -eu
SERVICE=${SERVICE:-http://127.0.0.1:8000}

call() { # call TITLE CURL-ARGUMENTS...
    printf '\n# %s\n' "$1"
    shift
    curl --silent --show-error --fail-with-body "$@"
    echo
}

call 'What is served' "$SERVICE/models"

call 'A whole sequence: a sunspot forecast after each of four years' \
    "$SERVICE/rnn/forward" -H 'Content-Type: application/json' -d '{
        "model": "sunspots", "inputs": [[4.2], [21.5], [40.0], [29.8]], "returns": ["predictions"]}'

call 'A batch of two, time first, as torch.nn.RNN(4, 3) takes it' \
    "$SERVICE/rnn/forward" -H 'Content-Type: application/json' -d '{
        "model": "tutorial-rnn", "batch_first": false, "inputs": [
            [[1, 0, 0, 0], [0, 0, 1, 0]],
            [[0, 1, 0, 0], [0, 0, 0, 1]],
            [[0, 0, 1, 0], [1, 0, 0, 0]]]}'

call 'Two sequences of unequal length' \
    "$SERVICE/rnn/forward" -H 'Content-Type: application/json' -d '{
        "model": "sunspots", "inputs": [[[5], [11], [16]], [[23]]], "returns": ["predictions", "h_n"]}'

call 'One step of torch.nn.RNNCell(4, 2); the state goes along' \
    "$SERVICE/cell/step" -H 'Content-Type: application/json' -d '{
        "model": "tutorial-cell", "inputs": [[1, 0, 0, 0]], "h": [[0, 0]]}'

# -T - sends each line as it is written, -N shows each answer as it comes.
printf '\n# A stream of steps: a line in, a line out\n'
for year in 4.2 21.5 40.0; do
    echo "[$year]"
    sleep 1
done | curl --silent --show-error --fail-with-body -N -X POST -T - -H 'Content-Type: application/x-ndjson' \
    "$SERVICE/cell/step?model=sunspots&returns=predictions"
