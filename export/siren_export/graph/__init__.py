"""Author the ONNX graph of a guard."""
