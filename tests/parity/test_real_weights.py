"""Two real models against the reference: SmolLM2-135M-Instruct out of its GGUF file, and all-MiniLM-L6-v2."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import anyformer as af
from anyformer.inspection import evaluate, verify
from anyformer.model import Transformer

transformers = pytest.importorskip("transformers")

#: A page of English, as people write it.
PAGE = (
    "The harbour lay quiet under the morning fog, and the fishermen, who had been mending their nets since four "
    'o\'clock, spoke little. "It will clear by noon," said the eldest, without looking up; he had said the same '
    "thing on most mornings of the last fifty years, and had been right about as often as anybody. A boy came down "
    "the steps with a basket of bread. Behind him the town was waking: shutters opened, a dog barked twice, and "
    "somewhere a radio was reading out yesterday's prices for cod and herring.\n\n"
    "In 1987 the cannery had closed, and with it went the railway, the bank and the second school. What remained was "
    "the sea, which asks for no permission and signs no contracts. People learned to repair engines, to rent rooms to "
    "summer guests, to sell honey, postcards and knitted hats. They did not call it resilience. They called it "
    "Tuesday. And yet, if you stayed long enough to be offered a second cup of coffee, somebody would tell you about "
    "the plan for the old slipway, and you would see on the table a drawing, carefully folded, of a boat."
)
SENTENCES = [
    "A cat sits on the mat.",
    "The feline rests on a rug.",
    "Stock markets fell sharply on Monday.",
    "Shares dropped at the start of the week, analysts said, after a report on inflation that few had expected.",
    "Photosynthesis turns light into sugar.",
]


@pytest.fixture(scope="module")
def our_smollm2(smollm2: Path) -> Transformer:
    return af.load(smollm2, device="cpu")


@pytest.fixture(scope="module")
def their_smollm2(smollm2: Path) -> Any:
    """The same file, read and dequantised by transformers itself."""
    name, home = smollm2.name, smollm2.parent
    return transformers.AutoModelForCausalLM.from_pretrained(home, gguf_file=name, dtype=torch.float32)


@pytest.fixture(scope="module")
def minilm_directory(minilm_zip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("minilm")
    with zipfile.ZipFile(minilm_zip) as archive:
        archive.extractall(directory)
    return next(directory.rglob("config.json")).parent


@torch.no_grad()
def test_smollm2_reads_a_page_as_the_reference_does(our_smollm2: Transformer, their_smollm2: Any) -> None:
    """The loss of every token of a page of English equals the reference's, and so does what `evaluate` gives."""
    assert our_smollm2.tokenizer is not None
    ids = torch.tensor([our_smollm2.tokenizer.encode(PAGE)])
    ours, theirs = our_smollm2(ids).logits, their_smollm2(ids).logits
    assert float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-5
    losses = [F.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="none") for logits in (ours, theirs)]
    assert float((losses[0] - losses[1]).abs().max()) < 1e-3
    assert float(losses[0].mean()) == pytest.approx(float(losses[1].mean()), rel=1e-5)
    assert 2 < float(losses[0].mean()) < 4, "a model that knows English"
    found = evaluate(our_smollm2, PAGE)
    assert found.tokens == ids.shape[1]
    assert math.isclose(found.nats, float(losses[0].sum()), rel_tol=0.05)  # evaluate scores the first token too


@torch.no_grad()
def test_smollm2_writes_as_the_reference_does(our_smollm2: Transformer, their_smollm2: Any) -> None:
    """Greedy text after its own chat template is the reference's, and is an answer."""
    assert our_smollm2.tokenizer is not None
    prompt = our_smollm2.tokenizer.chat([{"role": "user", "content": "What is the capital of France?"}])
    ids = torch.tensor([our_smollm2.tokenizer.encode(prompt, special=False)])
    ours = our_smollm2.generate(ids, max_new_tokens=40, temperature=0.0)
    theirs = their_smollm2.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False, pad_token_id=2, eos_token_id=2
    )
    assert ours.tolist() == theirs[:, ids.shape[1] :].tolist()
    assert "Paris" in our_smollm2.tokenizer.decode(ours[0].tolist())
    continued = "Once upon a time, in a village by the sea,"
    row = torch.tensor([our_smollm2.tokenizer.encode(continued)])
    ours = our_smollm2.generate(row, max_new_tokens=48, temperature=0.0, eos=())
    theirs = their_smollm2.generate(
        row, attention_mask=torch.ones_like(row), max_new_tokens=48, min_new_tokens=48, do_sample=False, pad_token_id=2
    )
    assert ours.tolist() == theirs[:, row.shape[1] :].tolist()


def test_smollm2_keeps_the_contract(our_smollm2: Transformer) -> None:
    """Every clause of the contract on real weights; against transformers it is tried above, from the file itself."""
    checks = verify(our_smollm2, against_transformers=False)
    assert [check for check in checks if check.verdict == "differs"] == []
    assert sum(check.verdict == "same" for check in checks) >= 8


@torch.no_grad()
def test_minilm_embeds_as_the_reference_does(minilm_directory: Path) -> None:
    """Cosines between sentences equal those of the reference's hidden states, pooled by hand; and near is near."""
    model = af.load(minilm_directory, device="cpu")
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm_directory)
    theirs = transformers.AutoModel.from_pretrained(minilm_directory, dtype=torch.float32)
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    hidden, mask = theirs(**batch).last_hidden_state, batch["attention_mask"][:, :, None]
    wanted = F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    found = model.embed(SENTENCES)
    assert found.dtype == torch.float32
    assert found.shape == (5, 384)
    assert_close(found @ found.T, wanted @ wanted.T)
    assert_close(found, wanted)
    assert float(found[0] @ found[1]) > 0.5 > float(found[0] @ found[2])


def test_minilm_saved_again_is_the_same_file(minilm_directory: Path, tmp_path: Path) -> None:
    """Its unused pooler and position_ids are carried, and every tensor comes back to the byte."""
    from safetensors.torch import load_file

    af.load(minilm_directory, device="cpu").save(tmp_path)
    before, after = (load_file(home / "model.safetensors") for home in (minilm_directory, tmp_path))
    assert "pooler.dense.weight" in before
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert_close(af.load(tmp_path, device="cpu").embed(SENTENCES), af.load(minilm_directory).embed(SENTENCES))


def assert_close(found: Tensor, wanted: Tensor) -> None:
    """Equal to 1e-5 of the largest."""
    assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-5
