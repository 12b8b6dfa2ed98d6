"""Exported folders give the same logits and texts in transformers as in freetf, in a process that cannot import freetf."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from freetf_cli.data.tokenizer import byte_level
from freetf_cli.errors import CheckFailed
from freetf_cli.exchange.card import FREE_USE
from freetf_cli.exchange.check import compare_logits
from freetf_cli.exchange.huggingface import export
from freetf_cli.exchange.importing import import_folder
from freetf_cli.generation.sampling import SampleSpec, generate
from freetf_cli.latent.binary import bit_logits
from tests.exchange.conftest import LATENT, make_run

transformers = pytest.importorskip("transformers")
CPU = torch.device("cpu")
pytestmark = pytest.mark.slow
TOKENS = torch.arange(2 * 40).reshape(2, 40) * 7 % 256
Z = torch.arange(2 * 40).reshape(2, 40) * 11 % 64


@pytest.fixture(scope="module")
def fresh(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The output of fresh.py, which runs in a new process without freetf."""
    place = tmp_path_factory.mktemp("fresh")
    script, files = Path(__file__).with_name("fresh.py"), (folders, place / "found.json", place / "logits")
    command = [sys.executable, "-I", str(script), *map(str, files)]
    variables = {"PATH": "", "HF_HOME": str(place / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=variables, stdin=subprocess.DEVNULL, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads((place / "found.json").read_text()), load_file(place / "logits")


@pytest.fixture(scope="module")
def found(fresh: Any) -> Any:
    return fresh[0]


@pytest.mark.parametrize("name", ["baseline", "free"])
def test_logits(name: str, fresh: Any, runs: Path, opened: Any) -> None:
    assert fresh[0][f"{name} loading"] == []
    model = opened(runs / name).model(CPU)
    with torch.inference_mode():
        ours = model(TOKENS, Z if name == "free" else None).logits
        torch.testing.assert_close(fresh[1][name], ours, rtol=1e-5, atol=1e-4)
        if name == "free":
            ctx = model.context(TOKENS)
            posterior = bit_logits(model.infer_latent(model.lower(TOKENS, ctx), TOKENS, ctx))
            torch.testing.assert_close(fresh[1]["posterior"], posterior, rtol=1e-5, atol=1e-4)


def test_a_text_begins_with_the_separator(found: Any) -> None:
    assert found["ids"] == [[[256, *b"two"]], [256, *b"two"]]
    assert found["text"] == "<|endoftext|>two"


@pytest.mark.parametrize("name", ["baseline", "free"])
def test_greedy_generation_is_freetfs_with_a_cache_without_and_static(name: str, found: Any, runs: Path, opened: Any) -> None:
    checkpoint = opened(runs / name)
    model, latent = checkpoint.model(CPU), checkpoint.recipe.latent
    x = torch.tensor(found["ids"][0])
    with torch.inference_mode():
        for _ in range(20):
            x = torch.cat((x, model(x, Z[:1, : x.shape[1]] if latent else None).logits[:, -1:].argmax(-1)), 1)
    assert found[f"{name} cache"] == x.tolist()
    assert found[f"{name} no cache"] == found[f"{name} static"] == found[f"{name} cache"]
    assert len(set(x[0].tolist())) > 6  # no text of one token


def test_greedy_generation_is_that_of_freetf_sample(found: Any, runs: Path, opened: Any) -> None:
    checkpoint = opened(runs / "free")
    spec = SampleSpec(total=24, temperature=0.0, given_z=[Z[0].tolist()])
    (sample,) = generate(checkpoint.model(CPU), checkpoint.tokenizer(), ["two"], spec)
    assert sample.text == checkpoint.tokenizer().decode(found["free cache"][0])


def test_beams_and_sequences(found: Any) -> None:
    assert [len(found[f"{name} beams"]) for name in ("baseline", "free")] == [2, 2]
    assert found["free beams"] == found["beams, no cache"]
    assert found["free beams"][0] != found["free beams"][1]
    first, *others = found["three"]
    assert [first] == found["drawn"][0]  # the first draws what a single sequence does
    assert len(others) == 2 and first not in others  # greedy, and yet each has a Z of its own


def test_z_is_drawn_once_from_its_seed(found: Any) -> None:
    assert found["other z"] != found["free cache"]
    first, again, other = found["drawn"]
    assert first == again != other
    assert found["prior"] == found["by hand"] != first  # the prompt's Z is inferred by default
    assert found["a row's codes"][0] == found["a row's codes"][1]
    assert found["sampled"][0] == found["sampled"][1]  # without a seed: torch's global generator
    assert found["no prompt"][0][0] == 256


def test_left_padding_changes_nothing(found: Any) -> None:
    assert found["padded"] == found["unpadded"]
    assert found["padded posterior"] < 1e-4


def test_a_query_in_padding_sees_itself() -> None:
    """With no key at all, a kernel may return NaN, which would spread to the other positions."""
    from freetf_cli.exchange.modeling_free_transformer import FreeTransformerConfig, Positions

    index, padding = torch.arange(4), torch.tensor([[0, 0, 1, 1]])
    seen = Positions(FreeTransformerConfig(), index, index[None], 0, padding, None, causal=True).visible(4, 4, CPU)
    expected = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    assert seen is not None and seen[0, 0].int().tolist() == expected


def test_mistakes_are_errors(found: Any) -> None:
    assert "zz" in found["unknown"]
    assert found["short z"] == "z has codes for 5 positions, and position 5 needs one"
    assert found["rows of z"] == "z has 3 rows, for 1 sequences"
    assert "whole numbers [sequences, positions], not torch.int64" in found["flat z"] and "not torch.float32" in found["fractions in z"]
    assert "z has a code outside 0 … " in found["large z"]
    assert found["z as lists"] is True
    assert "not 'prio'" in found["other prompt_z"]
    assert "leave out z_seed, or z" in found["z and z_seed"] and "leave out prompt_z, or z" in found["z and prompt_z"]
    assert "needs z" in found["no z"]


@pytest.mark.parametrize(
    ("latent", "tied"),
    [({**LATENT, "encoder": "full"}, True), ({**LATENT, "window": 9, "depth": 1}, False), ({**LATENT, "table": {"order": 2}}, False)],
)
def test_other_encoders_and_tables(latent: dict[str, Any], tied: bool, opened: Any, tmp_path: Path) -> None:
    from freetf_cli.exchange.modeling_free_transformer import FreeTransformerForCausalLM

    make_run(tmp_path / "run", latent=latent, tie_embeddings=tied)
    checkpoint = opened(tmp_path / "run")
    made = export(checkpoint, checkpoint.model(CPU), tmp_path / "hf", shard_bytes=40_000)
    assert made.shards > 1 and made.logits.by.startswith("transformers") and made.logits.greatest < 1e-3
    model = FreeTransformerForCausalLM.from_pretrained(tmp_path / "hf").eval()
    padded, mask = torch.cat((torch.full((2, 3), 256), TOKENS), 1), torch.cat((torch.zeros(2, 3), torch.ones_like(TOKENS)), 1)
    with torch.no_grad():  # a window is counted from the first token
        torch.testing.assert_close(model.bit_logits(padded, mask)[:, 3:], model.bit_logits(TOKENS), rtol=1e-5, atol=1e-4)
    other = checkpoint.model(CPU)
    with torch.no_grad():
        other.latent.encoder.norm.weight.mul_(1.1)  # type: ignore[union-attr]
    with pytest.raises(CheckFailed, match="the logits differ"):  # the posterior is compared too
        compare_logits(other, checkpoint.tokenizer(), tmp_path / "hf")


def test_the_page_has_the_code_of_the_card_which_runs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "huggingface.md").read_text(encoding="utf-8")
    assert FREE_USE.split("```")[1].replace("DIR", "hf/free").replace("TEXT", "K>") in page


@pytest.mark.parametrize("kind", ["Llama", "Mistral"])
def test_what_transformers_saved_is_imported(kind: str, tmp_path: Path) -> None:
    """With transformers' own names, settings and tokenizer files; the import compares the logits itself."""
    sizes = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "tie_word_embeddings": False}
    config = getattr(transformers, f"{kind}Config")(**sizes, **({"sliding_window": None} if kind == "Mistral" else {}))
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "hf", max_shard_size="20KB")
    (tmp_path / "tokenizer.json").write_text(byte_level().json)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"), eos_token="<|endoftext|>")
    fast.save_pretrained(tmp_path / "hf")
    made = import_folder(tmp_path / "hf", tmp_path / "run")
    assert made.logits is not None and made.logits.by.startswith("transformers")
    assert made.logits.greatest < 1e-4 < made.logits.largest
    assert made.separator == "<|endoftext|>"
