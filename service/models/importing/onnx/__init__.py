"""Recurrent layers in ONNX graphs; needs the `onnx` package, which is optional."""
