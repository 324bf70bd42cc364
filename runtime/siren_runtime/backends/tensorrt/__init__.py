"""Plans: graphs that TensorRT or TensorRT-RTX compiled, and what is needed to trust one."""
