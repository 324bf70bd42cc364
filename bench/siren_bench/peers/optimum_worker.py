"""Runs in Optimum's own environment, so it imports nothing of this project.

`generate` is also what the bench's own environment generates with.

optimum_worker.py export BACKBONE FOLDER
optimum_worker.py serve FOLDER THREADS     one JSON request a line on stdin, one answer each
"""

import json
import os
import sys
from queue import Queue
from threading import Thread
from typing import Any


def export(backbone: str, folder: str) -> None:
    """Export a language model to ONNX in float32, with its key/value cache."""
    from optimum.exporters.onnx import main_export

    # What it does to the graph afterwards, merging tied matrices, fails beyond 2 GB.
    main_export(
        backbone,
        folder,
        task="text-generation-with-past",
        dtype="fp32",
        no_post_process=True,
        do_validation=False,
    )


def serve(folder: str, threads: str) -> None:
    """Generate for each request: template, text, new_tokens."""
    requests: Queue[str] = Queue()
    Thread(target=_receive, args=(requests,), daemon=True).start()

    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # it can only be stopped before the import
    import onnxruntime
    import torch
    from optimum.onnxruntime import ORTModelForCausalLM
    from transformers import AutoTokenizer

    torch.set_num_threads(int(threads))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(threads)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = ORTModelForCausalLM.from_pretrained(folder, session_options=options)
    # Optimum 0.1.0 takes hidden_size / heads for Qwen3 (huggingface/optimum issue 2379).
    model.embed_size_per_head = getattr(model.config, "head_dim", model.embed_size_per_head)
    answers = sys.stdout
    sys.stdout = sys.stderr
    print("{}", file=answers, flush=True)
    while True:
        request = json.loads(requests.get())
        generate(model, tokenizer, request["template"], request["text"], request["new_tokens"])
        print("{}", file=answers, flush=True)


def _receive(requests: "Queue[str]") -> None:
    """Take in requests; when whoever sends them is gone, end, in the middle of a text too."""
    for line in sys.stdin:
        requests.put(line)
    os._exit(0)


def generate(model: Any, tokenizer: Any, template: str, text: str, new_tokens: int) -> None:
    """Generate exactly `new_tokens` tokens, greedily, with a key/value cache."""
    import torch

    prompt = tokenizer(template)["input_ids"] if template else []
    ids = torch.tensor([prompt + tokenizer(text)["input_ids"]], device=model.device)
    with torch.inference_mode():
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
            do_sample=False,
            use_cache=True,
            pad_token_id=0,
        ).cpu()  # which waits until a GPU is done
    if output.shape[1] != ids.shape[1] + new_tokens:
        raise RuntimeError(f"generate made {output.shape[1] - ids.shape[1]} tokens")


if __name__ == "__main__":
    {"export": export, "serve": serve}[sys.argv[1]](*sys.argv[2:])
