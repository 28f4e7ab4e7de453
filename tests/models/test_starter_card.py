"""The shipped starter folder: it loads in transformers, it is small, and its card says what was measured."""

import json
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "python" / "pyrite" / "starter"
FILES = {
    "README.md",
    "chat_template.jinja",
    "config.json",
    "evaluation.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


def test_folder_holds_the_files_and_stays_small():
    assert {file.name for file in FOLDER.iterdir()} == FILES
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 12 * 2**20


def test_stop_tokens_are_end_of_text_and_end_of_turn():
    vocabulary = {t["content"]: t["id"] for t in json.loads((FOLDER / "tokenizer.json").read_text())["added_tokens"]}
    settings = json.loads((FOLDER / "generation_config.json").read_text())
    assert settings["eos_token_id"] == [vocabulary["<|end_of_text|>"], vocabulary["<|eot|>"]]
    assert settings["pad_token_id"] == vocabulary["<|finetune_right_pad|>"]
    assert settings["bos_token_id"] == vocabulary["<|begin_of_text|>"]


def test_evaluation_reaches_the_bar():
    result = json.loads((FOLDER / "evaluation.json").read_text())
    assert result["questions_seen_in_20000_training_draws_per_kind"] == 0
    for strength in ("low", "high"):
        assert result[strength]["questions"] >= 600
        assert len(result[strength]["by_kind"]) >= 12
        assert result[strength]["accuracy"] >= 0.95
        assert result[strength]["ended"] >= 0.98


def test_card_repeats_the_measured_numbers():
    card = (FOLDER / "README.md").read_text()
    result = json.loads((FOLDER / "evaluation.json").read_text())
    for strength in ("low", "high"):
        assert f"{100 * result[strength]['accuracy']:.1f} %" in card
        for kind, score in result[strength]["by_kind"].items():
            assert re.search(rf"\| {kind} \|.*{score}", card), (strength, kind)
    assert str(result["documents"]["perplexity"]) in card


def test_plain_text_gets_bos_and_digits_stand_alone():
    tokenizer = pytest.importorskip("tokenizers").Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    assert tokenizer.encode("Add 47").tokens[0] == "<|begin_of_text|>"
    assert tokenizer.encode("1234", add_special_tokens=False).tokens == list("1234")
    assert tokenizer.decode(tokenizer.encode("Zoë 5 é\n x", add_special_tokens=False).ids) == "Zoë 5 é\n x"


@pytest.mark.slow
def test_transformers_chats_with_the_folder():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER)
    model = transformers.MuseGlimmerForConditionalGeneration.from_pretrained(FOLDER, dtype=torch.float32)
    messages = [{"role": "user", "content": "What is 12 + 30?"}]
    for strength, thinks in (("low", False), ("high", True)):
        ids = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True, reasoning_strength=strength
        )
        out = model.generate(**ids, max_new_tokens=96)
        text = tokenizer.decode(out[0, ids["input_ids"].shape[1] :])
        assert text.endswith(" to=user<|message|>12 + 30 = 42.<|eot|>")
        assert text.startswith(" to=self<|message|>") == thinks


@pytest.mark.slow
def test_pyrite_agrees_with_transformers_on_the_folder():
    """In f32: the same tokens, and logprobs within 1e-3, on prompts longer than the window of 64."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from pyrite import LLM, SamplingParams

    model = transformers.MuseGlimmerForConditionalGeneration.from_pretrained(FOLDER, dtype=torch.float32).eval()
    params = SamplingParams(temperature=0.0, max_tokens=32, ignore_eos=True, prompt_logprobs=0, logprobs=0)
    story = "Once upon a time there was a brave girl named Nora who lived near the river. " * 6
    with LLM(dtype="float32") as llm:
        question = llm.apply_chat_template([{"role": "user", "content": "Sort 62, 9, 35."}])
        prompts = [
            llm.tokenizer.encode(story),
            llm.tokenizer.encode(question, add_special_tokens=False),
        ]
        outputs = llm.generate(prompts, params, use_tqdm=False)
    assert len(prompts[0]) > 100
    for prompt, output in zip(prompts, outputs, strict=True):
        ids = prompt + output.outputs[0].token_ids
        entries = [*output.prompt_logprobs[1:], *output.outputs[0].logprobs]
        with torch.inference_mode():
            logprobs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        for position, (token_id, entry) in enumerate(zip(ids[1:], entries, strict=True)):
            assert abs(entry[token_id].logprob - logprobs[position, token_id].item()) < 1e-3, position
        first_new = len(prompt) - 1
        assert logprobs[first_new:-1].argmax(-1).tolist() == output.outputs[0].token_ids


def test_unknown_roles_raise():
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER)
    with pytest.raises(Exception, match="Unknown role"):
        tokenizer.apply_chat_template([{"role": "developer", "content": "x"}], tokenize=False)
