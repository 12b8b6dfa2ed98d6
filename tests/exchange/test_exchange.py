"""Export and import: round trips of weights, names and settings; shards, model cards, and refused models."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from freetf_cli.config.files import load_recipe
from freetf_cli.data.tokenizer import byte_level
from freetf_cli.errors import CheckFailed, FreetfError, InputError
from freetf_cli.exchange import check, importing
from freetf_cli.exchange.folder import read_folder
from freetf_cli.exchange.huggingface import export, split_shards
from freetf_cli.exchange.importing import import_folder
from freetf_cli.exchange.llama import check_exportable, hf_name
from freetf_cli.runs.checkpoint import Checkpoint
from freetf_cli.runs.lock import lock_run
from tests.exchange.conftest import LATENT, make_run

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights are read back: what transformers computes is tested in test_transformers.py."""
    for module in (check, importing):
        monkeypatch.setattr(module, "has_transformers", lambda: False)


def test_names() -> None:
    assert hf_name("blocks.12.attention.out.weight") == "model.layers.12.self_attn.o_proj.weight"
    assert hf_name("latent.encoder.block.ffn.up.weight") == "model.encoder.block.mlp.up_proj.weight"
    assert hf_name("latent.encoder.blocks.1.ffn_norm.weight") == "model.encoder.layers.1.post_attention_layernorm.weight"
    assert hf_name("latent.post_sampler.weight") == "model.post_sampler.weight"


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("latent", [None, LATENT, {**LATENT, "encoder": "full", "window": 9, "depth": 1}])
def test_there_and_back_is_the_same_byte_for_byte(latent: dict[str, Any] | None, tied: bool, opened: Any, tmp_path: Path) -> None:
    make_run(tmp_path / "run", latent=latent, tie_embeddings=tied)
    before = opened(tmp_path / "run")
    made = export(before, before.model(CPU), tmp_path / "hf")
    assert made.logits.greatest == 0.0
    import_folder(tmp_path / "hf", tmp_path / "again")
    after = opened(tmp_path / "again")
    assert after.folder.name == "step-000000"
    assert after.weights.read_bytes() == before.weights.read_bytes()
    assert after.tokenizer().json == before.tokenizer().json
    ours, theirs = before.recipe.architecture, after.recipe.architecture
    initial = {"table_std"}  # of training, not of the architecture
    assert {**ours["model"], "ffn": 96} == theirs["model"]
    assert latent is None or {key: value for key, value in ours["latent"].items() if key not in initial} == theirs["latent"]


def test_tensors_and_settings_of_a_baseline_are_llamas(folders: Path) -> None:
    config = json.loads((folders / "baseline" / "config.json").read_text())
    assert config["model_type"] == "llama" and "auto_map" not in config
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 5e5
    tensors = load_file(folders / "baseline" / "model.safetensors")
    assert tensors["model.layers.3.self_attn.k_proj.weight"].shape == (16, 32)
    assert len(tensors) == 3 + 4 * 9
    tokenizer = json.loads((folders / "baseline" / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast" and tokenizer["eos_token"] == "<|endoftext|>"


def test_shards(runs: Path, opened: Any, tmp_path: Path) -> None:
    assert split_shards({"a": 3, "b": 3, "c": 9, "d": 1}, 6) == [["a", "b"], ["c"], ["d"]]
    checkpoint = opened(runs / "free")
    made = export(checkpoint, checkpoint.model(CPU), tmp_path / "hf", shard_bytes=40_000)
    index = json.loads((tmp_path / "hf" / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "hf").glob("model-*"))
    assert len(files) == made.shards > 3 and set(index["weight_map"].values()) == set(files)
    assert index["metadata"]["total_size"] == 4 * made.parameters
    assert read_folder(tmp_path / "hf").model()(torch.arange(9)[None], torch.arange(9)[None]).logits.shape == (1, 9, 257)


def test_the_card_tells_how_it_was_trained_and_no_path(folders: Path) -> None:
    card = (folders / "free" / "README.md").read_text()
    assert "# books\n" in card and "trained with freetf: random" in card
    assert "6 bits per token, injected into block 2 (from 0); κ = 0.5" in card and "| steps | 5, 480 tokens |" in card
    assert "/home" not in card
    assert "library_name: transformers" in card.splitlines()


def test_the_code_in_a_folder_is_the_packages(folders: Path) -> None:
    package = Path(check.__file__).with_name("modeling_free_transformer.py")
    assert (folders / "free" / package.name).read_bytes() == package.read_bytes()
    assert not (folders / "baseline" / package.name).exists()
    assert not re.search(r"^\s*(from|import) freetf", package.read_text("utf-8"), re.MULTILINE)


def test_a_folder_cannot_go_to_stdout(runs: Path, run_cli: Callable[..., Any]) -> None:
    done = run_cli("export", runs / "baseline", "-o", "-")
    assert done.code == 2 and "name a folder: -o DIR" in done.stderr


def test_wrong_weights_are_noticed_and_leave_no_folder(runs: Path, opened: Any, tmp_path: Path) -> None:
    checkpoint = opened(runs / "baseline")
    model = checkpoint.model(CPU)
    with torch.no_grad():
        model.blocks[0].ffn.up.weight[0, 0] += 1  # type: ignore[union-attr]
    with pytest.raises(CheckFailed, match="the logits differ by"):
        export(checkpoint, model, tmp_path / "hf")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_refused(runs: Path, opened: Any, tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        export(opened(runs / "baseline"), opened(runs / "baseline").model(CPU), tmp_path / "hf")
    assert (tmp_path / "hf" / "mine.txt").read_text() == "mine"


def test_other_kinds_of_attention_are_refused(tmp_path: Path, opened: Any) -> None:
    make_run(tmp_path / "run", attention="talking-heads", attention_layers=[1])
    checkpoint = opened(tmp_path / "run")
    with pytest.raises(InputError, match="a model with talking-heads attention cannot be exported"):
        export(checkpoint, checkpoint.model(CPU), tmp_path / "hf")


def test_a_latent_that_the_exported_code_would_read_elsewhere_is_refused() -> None:
    with pytest.raises(InputError, match="beyond = 'nothing' cannot be exported"):
        check_exportable(load_recipe("reviews-toy-free"))
    check_exportable(load_recipe("coins-free"))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"model_type": "qwen2"}, "'qwen2' is another architecture"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "RoPE scaling of type 'llama3'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": None}, "RoPE scaling of type 'linear'"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "RoPE scaling of type 'yarn'"),
        ({"attention_bias": True}, "biases in the attention"),
        ({"mlp_bias": True}, "biases in the feed-forward part"),
        ({"model_type": "mistral", "sliding_window": 16}, "sliding-window attention of 16 positions"),
        ({"hidden_act": "gelu"}, "the activation 'gelu'"),
        ({"head_dim": 16}, "head_dim = 16"),
        ({"quantization_config": {"bits": 4}}, "quantised weights"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layers of type sliding_attention"),
        ({"num_hidden_layers": None}, "does not give the model's layers"),
        ({"num_hidden_layers": 5}, "the weights lack model.layers.4"),
        ({"num_hidden_layers": 3}, "model.layers.3.input_layernorm.weight is not a weight of freetf's decoder"),
        ({"intermediate_size": 64}, r"has shape \(32, 96\), but config.json implies \(32, 64\)"),
        ({"num_attention_heads": 5}, "model.heads = 5 does not divide model.width = 32"),
        ({"hidden_size": "x"}, "model.width"),
        ({"vocab_size": 256}, "the tokenizer has 257 tokens, and the model only 256"),
    ],
)
def test_unsupported_models_are_refused_with_the_reason(keys: dict[str, Any], words: str, changed: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        import_folder(changed(**keys), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_biases_of_the_weights_are_refused(changed: Any, tmp_path: Path) -> None:
    path = changed() / "model.safetensors"
    save_file({**load_file(path), "model.layers.0.self_attn.q_proj.bias": torch.zeros(32)}, path)
    with pytest.raises(InputError, match="the model has biases"):
        import_folder(path.parent, tmp_path / "run")


def test_a_mistral_without_windows_in_bfloat16_is_imported(changed: Any, opened: Any, tmp_path: Path) -> None:
    rope = {"rope_parameters": None, "rope_theta": 1e4}
    path = changed(model_type="mistral", sliding_window=None, tie_word_embeddings=True, **rope) / "model.safetensors"
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4), "lm_head.weight": torch.zeros(257, 32)}  # tied
    save_file({name: value.bfloat16() for name, value in {**load_file(path), **extra}.items()}, path)
    made = import_folder(path.parent, tmp_path / "run")
    assert any("the weights were BF16" in note for note in made.notes)
    checkpoint = opened(tmp_path / "run")
    assert checkpoint.recipe.model.rope_theta == 1e4
    assert checkpoint.model(CPU).norm.weight.dtype == torch.float32


def test_damaged_folders_are_refused(changed: Any, tmp_path: Path) -> None:
    folder = changed()
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-100])
    with pytest.raises(InputError, match="not a readable safetensors file"):
        import_folder(folder, tmp_path / "run")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(InputError, match="pickled weights are not read"):
        import_folder(folder, tmp_path / "run")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../etc/x.safetensors"}}')
    with pytest.raises(InputError, match="the index does not say"):
        import_folder(folder, tmp_path / "run")
    (folder / "config.json").write_text("[1]")
    with pytest.raises(InputError, match="not a JSON object"):
        import_folder(folder, tmp_path / "run")
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"no config\.json"):
        import_folder(folder, tmp_path / "run")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match=r"no config\.json, .*; merge the adapter into its model"):
        read_folder(folder)


def test_the_separator_is_the_folders_begin_token(changed: Any, tmp_path: Path, opened: Any) -> None:
    folder = changed()
    text = byte_level().json.replace("<|endoftext|>", "<s>")
    tree = json.loads(text)
    tree["added_tokens"].append({**tree["added_tokens"][0], "id": 0, "content": "!"})  # a second special token
    (folder / "tokenizer.json").write_text(json.dumps(tree))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": {"content": "<s>"}, "eos_token": "!"}))
    made = import_folder(folder, tmp_path / "run")
    assert made.separator == "<s>" and any("also names !" in note for note in made.notes)
    assert opened(tmp_path / "run").tokenizer().separator == 256
    with pytest.raises(InputError, match="no special token 'x'"):
        import_folder(folder, tmp_path / "other", separator_token="x")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        import_folder(folder, tmp_path / "other")


@pytest.fixture
def imported(folders: Path, run_cli: Callable[..., Any], tmp_path: Path) -> Path:
    done = run_cli("import", folders / "baseline", "-o", tmp_path / "imported")
    assert done.code == 0, done.stderr
    return tmp_path / "imported"


def test_an_imported_run_is_sampled_shown_and_measured(imported: Path, runs: Path, run_cli: Callable[..., Any], tmp_path: Path) -> None:
    words = ("--prompt", "abc", "--max-tokens", 9, "--device", "cpu")
    assert run_cli("sample", imported, *words).stdout == run_cli("sample", runs / "baseline", *words).stdout
    assert "imported: baseline" in run_cli("show", imported).stdout
    (tmp_path / "text").mkdir()
    for number in range(60):
        (tmp_path / "text" / f"{number}.txt").write_text(f"document {number} " * 30)
    tokenizer = imported / "checkpoints" / "step-000000" / "tokenizer.json"
    assert run_cli("prepare", tmp_path / "text", "-o", tmp_path / "data", "--tokenizer", tokenizer).code == 0
    done = run_cli("evaluate", imported, "--data", tmp_path / "data", "--sequences", 20, "--device", "cpu")
    assert done.code == 0, done.stderr
    assert "--data DIR" in run_cli("evaluate", imported).stderr
    data = ("--set", f"data.dir={tmp_path / 'data'}", "--device", "cpu")
    again = run_cli("train", imported / "recipe.toml", "-o", imported, "--resume", "auto", *data)
    assert again.code == 2 and "use --init-from to start a new run" in again.stderr
    small = (*data, "--set", "train.steps=2", "--set", "train.batch=2", "--set", "eval.sequences=2", "--set", "eval.samples=0", "-q")
    done = run_cli("train", imported / "recipe.toml", "-o", tmp_path / "more", "--init-from", imported, *small)
    assert (done.code, done.stderr.count("does not compute")) == (0, 0), done.stderr


def test_the_card_of_an_imported_model_claims_no_training(imported: Path, opened: Any, tmp_path: Path) -> None:
    checkpoint = opened(imported)
    export(checkpoint, checkpoint.model(CPU), tmp_path / "hf", manifest=json.loads((imported / "manifest.json").read_text()))
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "which did not train it: imported from baseline." in card
    assert "| steps |" not in card and "trained with freetf" not in card


def test_a_second_import_does_not_replace_a_run(imported: Path, folders: Path, run_cli: Callable[..., Any]) -> None:
    before = (imported / "manifest.json").read_bytes()
    done = run_cli("import", folders / "baseline", "-o", imported)
    assert done.code == 2 and "the run exists" in done.stderr
    assert (imported / "manifest.json").read_bytes() == before


def test_a_run_that_is_being_trained_is_not_replaced(imported: Path, folders: Path) -> None:
    shutil.rmtree(imported / "checkpoints" / "step-000000")  # as before the first checkpoint
    with lock_run(imported), pytest.raises(FreetfError, match="is training this run"):
        import_folder(folders / "baseline", imported)


def test_an_interrupted_import_can_be_repeated(imported: Path, folders: Path, run_cli: Callable[..., Any]) -> None:
    shutil.rmtree(imported / "checkpoints" / "step-000000")
    assert run_cli("import", folders / "baseline", "-o", imported).code == 0
    assert Checkpoint.open(imported / "checkpoints" / "step-000000").step == 0
