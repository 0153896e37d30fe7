"""The native CPU engine: recurrent kernels compiled at model load; docs/native-engine.md tells how it works."""

from service.engine.native.engine import NativeEngine

__all__ = ["NativeEngine"]
