"""The native CPU engine: recurrent kernels compiled at model load; docs/native-engine.md tells how it works."""
