"""Run graphs in ONNX Runtime."""
