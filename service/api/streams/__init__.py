"""Streams of steps: one stream, `step_stream`, over two transports, NDJSON in a POST and WebSocket."""
