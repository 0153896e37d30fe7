"""Recurrent layers in ONNX graphs."""
