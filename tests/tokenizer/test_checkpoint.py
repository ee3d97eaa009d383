"""Checkpoints: official names in and out, nothing filled in, nothing left over, no code run."""

import dataclasses
import io
import json
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.tokenizer.conftest import GOLDEN_DIRECTORY, Golden
from tokenizer.__main__ import main
from tokenizer.checkpoint import expected_shapes, load_model, load_tokenizer, official_tensors, save_model
from tokenizer.config import SeedTokenizerConfig, config_from_shapes
from tokenizer.official_names import official_layout, position_ids
from tokenizer.seed import SeedModel


def published_shapes(use_qformer_image: bool) -> dict[str, tuple[int, ...]]:
    """Every entry of the published model's state dict at full size."""
    spec = json.loads((GOLDEN_DIRECTORY / "official_shapes.json").read_text())
    shapes = spec["default"]
    if use_qformer_image:
        dropped = spec["use_qformer_image_drops"]
        shapes = {name: shape for name, shape in shapes.items() if name not in dropped}
        shapes |= spec["use_qformer_image_adds"]
    return {name: tuple(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("use_qformer_image", [False, True])
def test_full_size_names_and_shapes_are_the_published_ones(use_qformer_image: bool) -> None:
    # The published inference code builds 12 reverse layers, its training code 4.
    reverse_layers = 12 if use_qformer_image else 4
    config = SeedTokenizerConfig(use_qformer_image=use_qformer_image, reverse_layers=reverse_layers)
    with torch.device("meta"):
        ours = expected_shapes(SeedModel(config), official_layout(config))
    ours |= {name: tuple(ids.shape) for name, ids in position_ids(config).items()}
    published = published_shapes(use_qformer_image)
    assert ours == published
    assert config_from_shapes(published, "published") == config


def test_preset_is_what_the_published_shapes_say() -> None:
    assert config_from_shapes(published_shapes(False), "published") == SeedTokenizerConfig()


def test_saving_gives_back_every_official_tensor(golden: Golden, tmp_path: Path) -> None:
    model, digest = load_model(golden.directory)
    save_model(model, tmp_path)
    before, after = (load_file(path / "model.safetensors") for path in (golden.directory, tmp_path))
    assert before.keys() >= after.keys() >= {name for name in before if not name.endswith("position_ids")}
    assert all(torch.equal(before[name], after[name]) for name in after)
    again, digest_again = load_model(tmp_path)
    assert digest_again == digest
    assert again.config == model.config


def test_every_parameter_is_read(golden: Golden) -> None:
    model = golden.model()
    layout = official_layout(model.config)
    assert layout.keys() == dict(model.named_parameters()).keys()
    assert not model.state_dict().keys() - layout.keys()


def tensors_of(golden: Golden) -> dict[str, Tensor]:
    return load_file(golden.directory / "model.safetensors")


def directory_with(tmp_path: Path, golden: Golden, tensors: dict[str, Tensor]) -> Path:
    save_file(tensors, tmp_path / "model.safetensors")
    shutil.copy(golden.directory / "config.json", tmp_path)
    return tmp_path


@pytest.mark.parametrize("is_present", [True, False])
def test_position_ids_may_be_there_or_not(tiny: Golden, tmp_path: Path, is_present: bool) -> None:
    tensors = {name: tensor for name, tensor in tensors_of(tiny).items() if not name.endswith("position_ids")}
    if is_present:
        tensors["Qformer.bert.embeddings.position_ids"] = torch.arange(512)[None]
    _, digest = load_model(directory_with(tmp_path, tiny, tensors))
    assert digest == load_model(tiny.directory)[1]


@pytest.mark.parametrize(
    ("suffix", "content"),
    [(".pt", "bare"), (".pth", "model"), (".bin", "state_dict"), (".pt", "legacy"), (".pt", "half")],
)
def test_torch_files_give_the_same_codes(tiny: Golden, tmp_path: Path, suffix: str, content: str) -> None:
    tensors = tensors_of(tiny)
    if content == "half":
        tensors |= {name: t.half() for name, t in tensors.items() if name.startswith("visual_encoder.blocks")}
    path = tmp_path / f"weights{suffix}"
    wrapped = tensors if content in ("bare", "legacy", "half") else {content: tensors, "epoch": 3}
    torch.save(wrapped, path, _use_new_zipfile_serialization=content != "legacy")
    config = SeedTokenizerConfig.from_json(tiny.directory / "config.json")
    codes = load_tokenizer(path, config=config, batch_size=6).encode(tiny.images)
    assert (codes == tiny["codes"]).mean() > (0.98 if content == "half" else 0.999999)


def test_the_hash_sees_values_not_storage(tiny: Golden, tmp_path: Path) -> None:
    halves = {name: t.half() if t.is_floating_point() else t for name, t in tensors_of(tiny).items()}
    for name, tensors in {"halves": halves, "floats": {n: t.float() for n, t in halves.items()}}.items():
        (tmp_path / name).mkdir()
        directory_with(tmp_path / name, tiny, tensors)
    digests = {load_model(tmp_path / name)[1] for name in ("halves", "floats")}
    assert len(digests) == 1
    assert load_model(tiny.directory)[1] not in digests


@pytest.mark.parametrize("name", ["quantize.embedding.weight", "pos_embed", "ln_vision.bias"])
def test_the_hash_sees_every_tensor(tiny: Golden, tmp_path: Path, name: str) -> None:
    tensors = tensors_of(tiny)
    tensors[name].view(-1)[-1] += 1e-6
    assert load_model(directory_with(tmp_path, tiny, tensors))[1] != load_model(tiny.directory)[1]


def test_the_hash_sees_the_configuration_but_not_its_description(tiny: Golden) -> None:
    config = SeedTokenizerConfig.from_json(tiny.directory / "config.json")
    digest = load_model(tiny.directory)[1]
    assert load_model(tiny.directory, causal=False)[1] != digest
    assert load_model(tiny.directory, config=dataclasses.replace(config, description="other"))[1] == digest


def test_missing_unexpected_and_misshapen_tensors_are_all_listed(tiny: Golden, tmp_path: Path) -> None:
    tensors = tensors_of(tiny)
    del tensors["visual_encoder.blocks.1.attn.q_bias"], tensors["image_down.2.weight"]
    tensors["image_down.7.weight"] = torch.zeros(2)
    tensors["query_tokens"] = torch.zeros(1, 32, 49)
    with pytest.raises(ValueError, match="2 missing, 1 of another shape; 1 unexpected") as error:
        load_model(directory_with(tmp_path, tiny, tensors))
    for name in ("blocks.1.attn.q_bias", "image_down.2.weight", "image_down.7.weight"):
        assert name in str(error.value)
    assert "query_tokens: [1, 32, 49]" in str(error.value)


def test_no_list_of_tensors_is_cut(tiny: Golden, tmp_path: Path) -> None:
    tensors = {name: tensor for name, tensor in tensors_of(tiny).items() if "Qformer" not in name}
    tensors |= {f"extra.{index}": torch.zeros(1) for index in range(50)}
    missing = [name for name in tensors_of(tiny) if name not in tensors and "position_ids" not in name]
    assert len(missing) > 40
    with pytest.raises(ValueError, match="50 unexpected") as error:
        load_model(directory_with(tmp_path, tiny, tensors))
    listed = {line.strip() for line in str(error.value).splitlines()}
    assert listed >= {*missing, *(f"extra.{index}" for index in range(50))}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_weights_that_are_not_finite_are_named(
    tiny: Golden, tmp_path: Path, value: float, dtype: torch.dtype
) -> None:
    tensors = tensors_of(tiny)
    for name in ("encode_task_layer.2.weight", "visual_encoder.blocks.1.attn.v_bias"):
        tensors[name] = tensors[name].to(dtype)
        tensors[name].view(-1)[-1] = value
    with pytest.raises(ValueError, match=r"model\.safetensors: of .*, 2 hold NaN or infinity") as error:
        load_model(directory_with(tmp_path, tiny, tensors))
    assert "\n    encode_task_layer.2.weight\n    visual_encoder.blocks.1.attn.v_bias\n" in str(error.value)


def test_leftovers_can_be_dropped_by_asking(tiny: Golden, tmp_path: Path) -> None:
    source = directory_with(tmp_path, tiny, tensors_of(tiny) | {"distill_text_proj.weight": torch.zeros(2)})
    with pytest.raises(ValueError, match="--drop-unexpected"):
        load_model(source)
    assert main(["convert", str(source), str(tmp_path / "clean"), "--drop-unexpected"]) == 0
    assert load_model(tmp_path / "clean")[1] == load_model(tiny.directory)[1]


def test_a_tensor_of_integers_is_refused(tiny: Golden, tmp_path: Path) -> None:
    tensors = tensors_of(tiny)
    tensors["ln_vision.bias"] = torch.zeros(64, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"ln_vision.bias: \[64\] torch.int64"):
        load_model(directory_with(tmp_path, tiny, tensors))


def test_training_checkpoints_are_recognised(tiny: Golden, tmp_path: Path) -> None:
    frozen = ("visual_encoder.", "ln_vision.")
    trained = {name: t for name, t in tensors_of(tiny).items() if not name.startswith(frozen)}
    with pytest.raises(ValueError, match="merge it with the image encoder"):
        load_model(directory_with(tmp_path, tiny, trained))
    torch.save({"model": trained, "optimizer": {"step": 1}}, tmp_path / "checkpoint_0.pth")
    with pytest.raises(ValueError, match="merge it with the earlier stage"):
        load_model(tmp_path / "checkpoint_0.pth")


def test_unknown_head_counts_must_be_told(tiny: Golden) -> None:
    with pytest.raises(ValueError, match="no head count is known for width 64"):
        load_model(tiny.directory / "model.safetensors")


class Harmful:
    """Unpickling this runs a command."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.trace), "w")


def pickled_with_torch(path: Path, content: object) -> None:
    torch.save({"weight": content}, path)


def pickled_with_legacy_torch(path: Path, content: object) -> None:
    torch.save({"weight": content}, path, _use_new_zipfile_serialization=False)


def pickled(path: Path, content: object) -> None:
    path.write_bytes(pickle.dumps(content))


def pickled_in_tar(path: Path, content: object) -> None:
    with tarfile.open(path, "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            member = tarfile.TarInfo(name)
            member.size = len(data := pickle.dumps(content))
            archive.addfile(member, io.BytesIO(data))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("write", [pickled_with_torch, pickled_with_legacy_torch, pickled, pickled_in_tar])
def test_code_in_a_file_is_refused_and_not_run(tmp_path: Path, write) -> None:
    trace, path = tmp_path / "trace", tmp_path / "weights.pt"
    write(path, Harmful(trace))
    with pytest.raises(ValueError, match=r"weights.pt: (refused|not a sound)"):
        load_model(path)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("weights.pt", b"", "not a sound torch file"),
        ("weights.pt", b"not a checkpoint", "refused|not a sound"),
        ("model.safetensors", b"\x00" * 30, "not a sound safetensors file"),
        ("weights.onnx", b"x", "expected a .safetensors file or one of"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}: .*({message})"):
        load_model(tmp_path / name)


def test_truncated_files_are_named(tiny: Golden, tmp_path: Path) -> None:
    torch.save(tensors_of(tiny), tmp_path / "weights.pt")
    for path in (tmp_path / "weights.pt", tmp_path / "model.safetensors"):
        whole = path.read_bytes() if path.exists() else (tiny.directory / path.name).read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match=f"{path.name}: .*download it again"):
            load_model(path)


@pytest.mark.parametrize("content", [[torch.zeros(1)], {"epoch": 3}, torch.zeros(1)])
def test_other_content_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="expected a state dict"):
        load_model(tmp_path / "weights.pt")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"vit_width": 65}, "vit_width 65 is not a multiple of vit_heads 4"),
        ({"vit_width": "64"}, "vit_width must be a positive integer"),
        ({"causal": 1}, "causal must be true or false"),
        ({"vit_ln_eps": -1e-6}, "vit_ln_eps must be a positive number"),
        ({"n_embed": 70_000}, "does not fit uint16"),
        ({"vit_num_tokens": 256}, "vit_num_tokens is 256, but the other entries give 257"),
        ({"vit_widht": 64}, "unknown entries .'vit_widht'."),
        ({"beta": True}, "beta must be a positive number"),
    ],
)
def test_configurations_that_do_not_hold_are_refused(
    tiny: Golden, entries: dict[str, object], message: str
) -> None:
    whole = json.loads((tiny.directory / "config.json").read_text())
    with pytest.raises(ValueError, match=f"config.json: .*{message}"):
        SeedTokenizerConfig.from_dict(whole | entries)


def test_a_language_model_is_no_tokenizer(tmp_path: Path) -> None:
    fields = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    save_file({"model.norm.weight": torch.ones(64)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"^\S+: is a language model \(llama\), no image tokenizer.{,80}$"):
        load_model(tmp_path)


@pytest.mark.parametrize("text", ["{", "[1]", ""])
def test_configurations_that_are_no_json_object_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json: (not JSON|expected a JSON object)"):
        SeedTokenizerConfig.from_json(tmp_path / "config.json")


def test_configuration_survives_writing_and_reading(golden: Golden) -> None:
    config = golden.model().config
    assert SeedTokenizerConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_what_decides_no_code_is_not_in_the_fingerprint(tiny: Golden) -> None:
    whole = json.loads((tiny.directory / "config.json").read_text())
    config = SeedTokenizerConfig.from_dict(whole)
    for entries in ({"beta": 1.0}, {"legacy": False}, {"description": "x"}, {"block_mlp_ratio": 4}):
        assert SeedTokenizerConfig.from_dict(whole | entries).architecture() == config.architecture()
    prints = {
        load_tokenizer(tiny.directory, precision=precision).fingerprint({"filter": picture_filter}).hex
        for precision in ("fp32", "bf16")
        for picture_filter in ("bicubic", "bilinear")
    }
    assert len(prints) == 4


def test_bilateral_variant_differs_from_the_causal_one(tiny: Golden) -> None:
    codes = load_tokenizer(tiny.directory, causal=False, batch_size=6).encode(tiny.images)
    assert 0.2 < (codes != tiny["codes"]).mean() < 0.7


def test_a_trained_key_bias_cannot_be_saved(tiny: Golden) -> None:
    model = tiny.model()
    model.vit.blocks[0].attn.qkv.bias[64:128] = 1.0
    with pytest.raises(ValueError, match="key bias is not zero"):
        official_tensors(model)


def test_embedded_sample_gives_varied_codes() -> None:
    images = np.load(GOLDEN_DIRECTORY / "tiny" / "golden.npz")["resized_u8"]
    tokenizer = load_tokenizer("sample", batch_size=6)
    codes = tokenizer.encode(images)
    assert "UNTRAINED" not in tokenizer.config.description
    assert len(np.unique(codes)) > 2 * len(images)
    assert min((codes[a] != codes[b]).sum() for a in range(6) for b in range(a)) > 8
