"""The Open Inference Protocol (v2): infer by the same calls as /rnn/forward and /cell/step, metadata and statistics."""
