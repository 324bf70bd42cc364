"""A graph that somebody else wrote gives the scores of its model."""

import contextlib
import functools
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from onnxruntime.quantization import quantize_dynamic
from transformers import AutoConfig, DynamicCache

from backbones import BackboneSpec
from generators import make_generator, need_genai
from guards import load_guard
from models import make_artifact, make_backbone, make_labels
from onnx_backbones import export_onnx
from reference import auto_class
from siren_command import siren
from siren_export.export import export_bundle
from siren_export.heads.registry import load_artifact
from siren_export.heads.together import together
from siren_export.sources.checkpoint import load_checkpoint
from siren_export.verify.own_states import OwnStates
from siren_export.verify.reference import LlmSiren, Reference
from siren_export.verify.unavailable import ReferenceUnavailable
from siren_runtime.bundle.progress import Progress
from siren_runtime.errors import CheckpointError, InputError
from texts import TEXTS

_TWO = {"num_hidden_layers": 2}
_LAYERS = ["sliding_attention", "full_attention"]
SPECS = {
    "llama": BackboneSpec("llama", _TWO),
    "gemma2": BackboneSpec("gemma2", {**_TWO, "layer_types": None}),
    "bert": BackboneSpec("bert", _TWO),
    "qwen3_moe": BackboneSpec("qwen3_moe", _TWO),
    "gpt_oss": BackboneSpec("gpt_oss", _TWO),
    # As the builder takes them: one scales what is added up, the other has one sum a block.
    "granite": BackboneSpec("granite", _TWO),
    "phi": BackboneSpec("phi", {**_TWO, "partial_rotary_factor": 1.0, "layer_norm_eps": 1e-5}),
    # A block of a window that most texts are longer than, and a block without.
    "gemma3": BackboneSpec(
        "gemma3_text", {**_TWO, "head_dim": 32, "sliding_window": 8, "layer_types": _LAYERS}
    ),
}
Make = Callable[[str], Path]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Return the folder of the backbone of that name in SPECS, in safetensors."""

    @functools.cache
    def make(name: str) -> Path:
        return make_backbone(tmp_path_factory.mktemp(name), SPECS[name])

    return make


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory, backbone: Make) -> Make:
    """Return the folder of the same backbone as model.onnx; do not change it."""

    @functools.cache
    def make(name: str) -> Path:
        return export_onnx(backbone(name), tmp_path_factory.mktemp(name) / "onnx")

    return make


@pytest.fixture(scope="module")
def generator(
    tmp_path_factory: pytest.TempPathFactory, backbone: Make
) -> Callable[[str, str], Path]:
    """Return the folder that onnxruntime-genai's builder makes, by backbone and precision."""
    need_genai()

    @functools.cache
    def make(name: str, precision: str) -> Path:
        copy = tmp_path_factory.mktemp("source") / name
        shutil.copytree(backbone(name), copy)
        return make_generator(copy, tmp_path_factory.mktemp(name) / "genai", precision, "cpu")

    return make


@pytest.fixture(scope="module")
def with_caches(tmp_path_factory: pytest.TempPathFactory, backbone: Make) -> Path:
    """The llama as Optimum writes a decoder that generates: it reads and gives keys and values."""
    pytest.importorskip("onnxscript", reason="torch.onnx exports with onnxscript")
    folder, source = tmp_path_factory.mktemp("caches"), backbone("llama")
    config = AutoConfig.from_pretrained(source)
    model = auto_class(config).from_pretrained(source, dtype=torch.float32).eval()
    heads, channels = config.num_key_value_heads, config.head_dim
    names = [f"{block}.{part}" for block in range(2) for part in ("key", "value")]
    free = {0: "batch", 1: "sequence"}
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        torch.onnx.export(
            _WithCaches(model).eval(),
            (
                torch.arange(10).reshape(2, 5),
                torch.ones(2, 8, dtype=torch.int64),
                [torch.ones(2, heads, 3, channels) for _ in names],
            ),
            str(folder / "model.onnx"),
            input_names=["input_ids", "attention_mask", *(f"past_key_values.{n}" for n in names)],
            output_names=["logits", *(f"present.{name}" for name in names)],
            dynamic_shapes={
                "input_ids": free,
                "attention_mask": {0: "batch", 1: "total"},
                "past": [{0: "batch", 2: "past"}] * len(names),
            },
            dynamo=True,
        )
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(source / name, folder / name)
    return folder


class _WithCaches(torch.nn.Module):
    """A language model whose keys and values are inputs and outputs, block by block."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, past: list[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        cache = DynamicCache()
        for place in range(0, len(past), 2):
            cache.update(past[place], past[place + 1], place // 2)
        found = self.model(input_ids, attention_mask, past_key_values=cache, use_cache=True)
        after = (part for layer in cache.layers for part in (layer.keys, layer.values))
        return found.logits, *after


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory, backbone: Make) -> Callable[..., Path]:
    """Return a head's folder, by its backbone and options of make_artifact."""

    @functools.cache
    def make(name: str, **options: Any) -> Path:
        return make_artifact(tmp_path_factory.mktemp("head"), backbone(name), **options)

    return make


def _scores(bundle: Path) -> list[float]:
    """Of a batch, so that texts are padded."""
    return [result.score for result in load_guard(bundle, threads=1).score_batch(TEXTS)]


@pytest.mark.parametrize("layers", [(0,), (0, 1)])
@pytest.mark.parametrize("pooling", ["residual_mean", "mlp_mean"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "bert"])
def test_an_authored_family_scores_as_its_own_graph_does(
    name: str,
    pooling: str,
    layers: tuple[int, ...],
    graph: Make,
    backbone: Make,
    head: Callable[..., Path],
    tmp_path: Path,
) -> None:
    artifact = load_artifact(head(name, pooling=pooling, layers=layers))
    export_bundle(artifact, load_checkpoint(backbone(name)), tmp_path / "authored", stream=False)
    manifest = export_bundle(artifact, load_checkpoint(graph(name)), tmp_path / "taken")
    assert manifest.precision == "fp32"
    assert manifest.backbone.blocks_kept == layers[-1] + 1
    expected = _scores(tmp_path / "authored")
    assert max(expected) - min(expected) > 0.1
    assert _scores(tmp_path / "taken") == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("pooling", ["residual_mean", "mlp_mean"])
def test_a_graph_that_reads_caches_scores_with_empty_ones(
    pooling: str,
    with_caches: Path,
    backbone: Make,
    head: Callable[..., Path],
    tmp_path: Path,
) -> None:
    artifact = load_artifact(head("llama", pooling=pooling, layers=(0, 1)))
    source = load_checkpoint(backbone("llama"))
    export_bundle(artifact, source, tmp_path / "authored", stream=False)
    checkpoint = load_checkpoint(with_caches)
    assert checkpoint.onnx is not None
    assert checkpoint.onnx.caches == ("present.0.key", "present.1.key")
    export_bundle(artifact, checkpoint, tmp_path / "taken")
    expected = _scores(tmp_path / "authored")
    assert max(expected) - min(expected) > 0.1
    assert _scores(tmp_path / "taken") == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("pooling", ["residual_mean", "mlp_mean"])
@pytest.mark.parametrize("name", ["granite", "phi", "gemma3"])
def test_a_generator_of_another_family_scores_as_llm_siren_does(
    name: str,
    pooling: str,
    generator: Callable[[str, str], Path],
    backbone: Make,
    head: Callable[..., Path],
    tmp_path: Path,
) -> None:
    artifact = load_artifact(head(name, pooling=pooling, layers=(0, 1)))
    reference = LlmSiren(artifact, load_checkpoint(backbone(name))).scores
    checkpoint = load_checkpoint(generator(name, "fp32"))
    manifest = export_bundle(artifact, checkpoint, tmp_path / "taken", reference=reference)
    assert manifest.verification.status == "passed"
    assert str(manifest.verification.reference).startswith("llm-siren")
    assert manifest.verification.max_difference is not None
    assert manifest.verification.max_difference < 1e-4


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss"])
def test_a_mixture_of_experts_scores_as_llm_siren_does(
    name: str, graph: Make, backbone: Make, head: Callable[..., Path], tmp_path: Path
) -> None:
    artifact = load_artifact(head(name))
    weights = load_checkpoint(backbone(name))
    with pytest.raises(CheckpointError, match="mixture of experts"):
        export_bundle(artifact, weights, tmp_path / "authored")
    reference = LlmSiren(artifact, weights).scores
    checkpoint = load_checkpoint(graph(name))
    manifest = export_bundle(artifact, checkpoint, tmp_path / "taken", reference=reference)
    assert manifest.verification.status == "passed"
    assert str(manifest.verification.reference).startswith("llm-siren")
    alone = [load_guard(tmp_path / "taken", threads=1).score(text).score for text in TEXTS]
    assert _scores(tmp_path / "taken") == pytest.approx(alone, abs=1e-4)
    mlp = load_artifact(head(name, pooling="mlp_mean"))
    with pytest.raises(CheckpointError, match="one product with a matrix"):
        export_bundle(mlp, checkpoint, tmp_path / "mlp")


@pytest.mark.parametrize("name", ["llama", "phi", "gemma3"])
def test_a_generator_is_taken_in_its_own_precision(
    name: str,
    generator: Callable[[str, str], Path],
    backbone: Make,
    head: Callable[..., Path],
    tmp_path: Path,
) -> None:
    labels = make_labels(tmp_path / "labels", backbone(name), layers=[0])
    heads = {"harm": load_artifact(head(name)), "kinds": load_artifact(labels)}
    artifact, checkpoint = together(heads), load_checkpoint(generator(name, "int4"))
    reference = OwnStates(artifact, checkpoint).scores
    manifest = export_bundle(artifact, checkpoint, tmp_path / "bundle", reference=reference)
    assert manifest.precision == "int4"
    report = manifest.verification
    assert report.status == "passed"
    assert str(report.reference).startswith("the file's own states")
    assert report.max_difference is not None
    assert report.max_difference < 1e-4  # the matrices are the same, only the form is another
    for precision in ("fp32", "int8"):
        with pytest.raises(InputError, match="quantized already"):
            export_bundle(artifact, checkpoint, tmp_path / "x", precision=precision)


def test_a_file_that_was_quantized_before_is_taken(
    graph: Make, head: Callable[..., Path], tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(graph("llama"), tmp_path / "copy"))
    quantize_dynamic(graph("llama") / "model.onnx", copy / "model.onnx")
    artifact, checkpoint = load_artifact(head("llama")), load_checkpoint(copy)
    reference = OwnStates(artifact, checkpoint).scores
    manifest = export_bundle(artifact, checkpoint, tmp_path / "bundle", reference=reference)
    assert manifest.precision == "int8"
    assert not manifest.saturation_free
    assert manifest.verification.status == "passed"


def test_a_graph_is_not_rewritten(graph: Make, head: Callable[..., Path], tmp_path: Path) -> None:
    inputs = load_artifact(head("llama")), load_checkpoint(graph("llama")), tmp_path / "x"
    with pytest.raises(InputError, match="taken as it is"):
        export_bundle(*inputs, precision="int8")
    with pytest.raises(InputError, match="for --target tensorrt"):
        export_bundle(*inputs, target="tensorrt")


def test_the_command_verifies_with_the_backbone_that_the_head_names(
    graph: Make, backbone: Make, head: Callable[..., Path], tmp_path: Path
) -> None:
    arguments = ["export", head("llama"), "--backbone", graph("llama")]
    result = siren(*arguments, "-o", tmp_path / "bundle")
    assert result.exit_code == 0, result.output
    assert "passed" in result.stderr
    assert "llm-siren" in result.stderr
    result = siren(*arguments, "-o", tmp_path / "auto", "--precision", "auto")
    assert result.exit_code == 2
    result = siren(
        *arguments[:3], backbone("llama"), "--reference-backbone", "x", "-o", tmp_path / "y"
    )
    assert result.exit_code == 2


def test_options_that_an_onnx_file_has_no_use_for_are_refused(
    graph: Make, head: Callable[..., Path], tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(head("llama"), tmp_path / "head"))
    config = json.loads((copy / "siren_config.json").read_text())
    config["base_model"]["model_id"] = "org/elsewhere"
    (copy / "siren_config.json").write_text(json.dumps(config))
    arguments = ["export", copy, "--backbone", graph("llama"), "-o", tmp_path / "bundle"]
    result = siren(*arguments, "--record-reference", tmp_path / "reference.json")
    assert result.exit_code == 2
    assert "name them with --reference-backbone" in " ".join(result.stderr.split())
    result = siren(*arguments, "--precision", "int8", "--calibration", "/dev/null")
    assert result.exit_code == 2
    assert not (tmp_path / "bundle").exists()


def test_trust_goes_to_the_weights_that_a_file_is_verified_by(
    graph: Make, backbone: Make, head: Callable[..., Path], tmp_path: Path
) -> None:
    weights = Path(shutil.copytree(backbone("llama"), tmp_path / "weights"))
    config = json.loads((weights / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling_own.Model"}
    (weights / "config.json").write_text(json.dumps(config))
    shown = load_checkpoint(weights, trust_remote_code=True).remote_code
    assert shown is not None
    words = ["export", head("llama"), "--backbone", graph("llama"), "-o", tmp_path / "bundle"]
    words += ["--reference-backbone", weights]
    result = siren(*words)
    assert result.exit_code == 1
    assert "give --trust-remote-code" in result.stderr
    result = siren(*words, "--trust-remote-code")
    assert "give --trust-remote-code" not in result.stderr
    assert result.exit_code == 0, result.stderr


def test_code_of_a_tokenizer_beside_a_file_is_trusted_and_compared_or_refused(
    graph: Make, head: Callable[..., Path], tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(graph("llama"), tmp_path / "onnx"))
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    settings["auto_map"] = {"AutoTokenizer": ["tokenization_own.T", None]}
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: auto_map .*give --trust"):
        load_checkpoint(copy)
    artifact, checkpoint = (
        load_artifact(head("llama")),
        load_checkpoint(copy, trust_remote_code=True),
    )
    reference = OwnStates(artifact, checkpoint).scores  # there is no such code to compare with
    with pytest.raises(CheckpointError, match=r"auto_map .* could not be verified \(transformers"):
        export_bundle(artifact, checkpoint, tmp_path / "bundle", reference=reference)

    def none(_progress: Progress) -> Reference:
        raise ReferenceUnavailable("there is none here")

    with pytest.raises(CheckpointError, match=r"\(there is none here; its tokens .*transformers"):
        export_bundle(artifact, checkpoint, tmp_path / "bundle", reference=none)
    assert not (tmp_path / "bundle").exists()


def test_labels_of_a_file_are_compared_with_its_own_states_each(
    graph: Make, backbone: Make, tmp_path: Path
) -> None:
    folder = make_labels(tmp_path / "labels", backbone("llama"), layers=[0, 1])
    config = json.loads((folder / "siren_config.json").read_text())
    names = config["mlp"]["class_names"]
    config["inference"]["labels"] = {n: {"threshold": 0.5, "temperature": 2.0} for n in names}
    (folder / "siren_config.json").write_text(json.dumps(config))
    artifact, checkpoint = load_artifact(folder), load_checkpoint(graph("llama"))
    reference = OwnStates(artifact, checkpoint).scores
    manifest = export_bundle(artifact, checkpoint, tmp_path / "bundle", reference=reference)
    assert manifest.verification.status == "passed"
    assert manifest.verification.verdict_agreement == 1
