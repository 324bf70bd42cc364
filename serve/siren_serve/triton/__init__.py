"""A guard in NVIDIA's Triton Inference Server: its repository, and the models that run there."""
