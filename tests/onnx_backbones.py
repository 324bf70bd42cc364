"""Backbones as graphs that somebody else wrote: torch's exporter runs on the tiny ones."""

import contextlib
import io
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from reference import auto_class

_COMPANIONS = ("config.json", "tokenizer.json", "tokenizer_config.json")


class _Logits(torch.nn.Module):
    """A language model without a cache, of two inputs and one output."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.model(input_ids, attention_mask, return_dict=True).logits
        return result


def export_onnx(backbone: Path, output: Path) -> Path:
    """Write a backbone as model.onnx, with its config and tokenizer beside it, as Optimum does.

    The test is skipped where torch's exporter lacks onnxscript.
    """
    pytest.importorskip("onnxscript", reason="torch.onnx exports with onnxscript")
    config = AutoConfig.from_pretrained(backbone)
    model = auto_class(config).from_pretrained(backbone, dtype=torch.float32).eval()
    model.config.use_cache = False
    if "moe" in config.model_type or config.model_type == "gpt_oss":
        model.set_experts_implementation("batched_mm")  # the others look which experts are chosen
    ids = torch.randint(4, 300, (2, 11), generator=torch.Generator().manual_seed(0))
    output.mkdir(parents=True)
    free = {0: "batch", 1: "sequence"}
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        torch.onnx.export(
            _Logits(model).eval(),
            (ids, torch.ones_like(ids)),
            str(output / "model.onnx"),
            input_names=["input_ids", "attention_mask"],
            output_names=["logits"],
            dynamic_shapes={"input_ids": free, "attention_mask": free},
            dynamo=True,
        )
    for name in _COMPANIONS:
        shutil.copyfile(backbone / name, output / name)
    return output
