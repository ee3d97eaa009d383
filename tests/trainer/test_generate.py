"""Generation: structure is valid whatever the model wants, and the cache changes nothing."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from schemas.vocabulary import CODES_PER_IMAGE, IMAGE_SPAN_LENGTH, VocabularyLayout
from tests.trainer.tiny import CONFIG, LAYOUT, bounds, positions, tiny_model
from tokenizer.text_tokenizer import TextTokenizer
from trainer.generate import SamplingConfig, draw, generate
from trainer.huggingface import export_model
from trainer.image_grammar import TEXT, ImageGrammar
from trainer.llama import Llama
from trainer.logits_processor import ImageLogitsProcessor
from trainer.prompt import decode_contents, encode_prompt

EOS = 2
ROOT = Path(__file__).resolve().parents[2]


def structure_error(ids: list[int], layout: VocabularyLayout = LAYOUT) -> str | None:
    """What is wrong with the images in a row of ids, found with a plain loop."""
    place = 0
    while place < len(ids):
        value = ids[place]
        if value == layout.img_start_id:
            codes = ids[place + 1 : place + 1 + CODES_PER_IMAGE]
            if len(codes) < CODES_PER_IMAGE:
                return f"image at {place} is cut"
            if any(not layout.image_code_offset <= code < layout.img_start_id for code in codes):
                return f"image at {place} holds another id"
            if ids[place + 1 + CODES_PER_IMAGE : place + IMAGE_SPAN_LENGTH] != [layout.img_end_id]:
                return f"image at {place} is not closed"
            place += IMAGE_SPAN_LENGTH
        elif value >= layout.base_size:
            return f"stray id {value} at {place}"
        else:
            place += 1
    return None


def adversary(seed: int) -> Llama:
    """A model that wants images to open, close and be cut at random: large random weights."""
    model = tiny_model(seed=seed).eval()
    generator = torch.Generator().manual_seed(seed)
    assert model.lm_head is not None
    model.lm_head.weight.data.mul_(100)
    markers = slice(LAYOUT.img_start_id, LAYOUT.img_end_id + 1)
    model.lm_head.weight.data[markers] = 20 * torch.randn(2, CONFIG.width, generator=generator)
    model.lm_head.weight.data[EOS] = 5 * torch.randn(CONFIG.width, generator=generator)
    return model


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    max_new_ids=st.integers(1, 80),
    temperature=st.sampled_from([0.0, 0.5, 1.0, 5.0]),
    top_p=st.sampled_from([0.1, 0.9, 1.0]),
    forces_image=st.booleans(),
)
def test_structure_is_always_valid(
    seed: int, lengths: list[int], max_new_ids: int, temperature: float, top_p: float, forces_image: bool
) -> None:
    forces_image = forces_image and max_new_ids >= IMAGE_SPAN_LENGTH
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(3, 300, length) for length in lengths]
    config = SamplingConfig(
        max_new_ids=max_new_ids, temperature=temperature, top_p=top_p, forces_image=forces_image, seed=seed
    )
    answers = generate(adversary(seed), prompts, LAYOUT, EOS, config)
    assert len(answers) == len(prompts)
    for answer in answers:
        assert structure_error(answer) is None
        assert len(answer) <= max_new_ids
        assert EOS not in answer
        if forces_image:
            assert answer[0] == LAYOUT.img_start_id


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**20), num_ids=st.integers(1, 150))
def test_grammar_accepts_exactly_what_a_plain_loop_accepts(seed: int, num_ids: int) -> None:
    """A walk through allowed ids alone; its states, read again from the ids, are the same."""
    rng = np.random.default_rng(seed)
    grammar = ImageGrammar(LAYOUT)
    state = torch.tensor([TEXT])
    ids: list[int] = []
    for left in range(num_ids, 0, -1):
        allowed = grammar.allowed(state, torch.tensor([left]), LAYOUT.padded_size)[0]
        assert allowed.any()
        wanted = [LAYOUT.img_start_id, LAYOUT.img_end_id, int(rng.integers(0, LAYOUT.padded_size))]
        choices = [value for value in wanted if allowed[value]] or allowed.nonzero()[:, 0].tolist()
        ids.append(int(rng.choice(choices)))
        state = grammar.advance(state, torch.tensor([ids[-1]]))
        assert torch.equal(state, grammar.state_of(torch.tensor([ids])))
    assert structure_error(ids) is None


def test_open_prompt_is_closed() -> None:
    """A prompt that ends within an image, as when an image is completed from its first codes."""
    for num_codes in (0, 1, 31, 32):
        codes = np.arange(num_codes) + LAYOUT.image_code_offset
        prompt = np.concatenate([[1, 5, LAYOUT.img_start_id], codes])
        config = SamplingConfig(max_new_ids=40)
        (answer,) = generate(adversary(0), [prompt], LAYOUT, EOS, config)
        assert structure_error(prompt.tolist() + answer) is None
        assert answer[CODES_PER_IMAGE - num_codes] == LAYOUT.img_end_id


def greedy_without_cache(model: Llama, prompt: Tensor, num_ids: int) -> list[int]:
    """Read everything again for each id."""
    ids = prompt
    grammar = ImageGrammar(LAYOUT)
    while len(ids) < len(prompt) + num_ids:
        logits = model(ids[None], positions([len(ids)]), bounds([len(ids)]))[0, -1]
        left = torch.tensor([len(prompt) + num_ids - len(ids)])
        allowed = grammar.allowed(grammar.state_of(ids[None]), left, len(logits))[0]
        ids = torch.cat((ids, logits.masked_fill(~allowed, -torch.inf).argmax()[None]))
    return ids[len(prompt) :].tolist()


@torch.no_grad()
def test_cache_and_batch_change_nothing() -> None:
    model = adversary(3)
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(3, 300, (length,), generator=generator) for length in (1, 9, 4)]
    config = SamplingConfig(max_new_ids=50, temperature=0.0)
    batch = generate(model, [prompt.numpy() for prompt in prompts], LAYOUT, -1, config)
    for prompt, answer in zip(prompts, batch, strict=True):
        assert answer == greedy_without_cache(model, prompt, 50)
        (alone,) = generate(model, [prompt.numpy()], LAYOUT, -1, config)
        assert alone == answer


def test_draws_follow_the_probabilities() -> None:
    logits = torch.tensor([[0.1, 0.6, 0.0, 0.3]]).log()
    uniform = torch.linspace(0, 1, 10_001)[:-1]
    drawn = draw(logits.expand(len(uniform), -1), 1.0, uniform)
    assert torch.bincount(drawn, minlength=4).tolist() == pytest.approx([1000, 6000, 0, 3000], abs=2)
    drawn = draw(logits.expand(len(uniform), -1), 0.8, uniform)
    assert torch.bincount(drawn, minlength=4).tolist() == pytest.approx([0, 6667, 0, 3333], abs=2)
    drawn = draw(logits.expand(len(uniform), -1), 0.6, uniform)
    assert set(drawn.tolist()) == {1}


def test_logits_processor_draws_valid_images_in_transformers(tmp_path: Path) -> None:
    model = adversary(5)
    export_model(tmp_path, model.named_parameters(), CONFIG, LAYOUT, torch.float32)
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    prompts = torch.randint(3, 300, (3, 6), generator=torch.Generator().manual_seed(0))
    forced = torch.cat((prompts, torch.full((3, 1), LAYOUT.img_start_id)), dim=1)
    torch.manual_seed(0)
    for inputs in (prompts, forced):
        processor = ImageLogitsProcessor(LAYOUT, max_length=90, num_codes=64)
        outputs = theirs.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_length=90,
            do_sample=True,
            eos_token_id=EOS,
            pad_token_id=0,
            logits_processor=[processor],
        )
        for row in outputs:
            kept = row.tolist()
            ended = kept.index(EOS) if EOS in kept else len(kept)
            assert structure_error(kept[:ended]) is None
            assert not any(LAYOUT.image_code_offset + 64 <= value < LAYOUT.img_start_id for value in kept)
    assert LAYOUT.img_end_id in outputs[0].tolist()


def test_prompts_and_answers_round_trip() -> None:
    tokenizer = TextTokenizer(ROOT / "samples" / "text_tokenizer")
    layout = tokenizer.layout
    codes = np.arange(0, 8192, 256, dtype=np.uint16)
    contents = ["A picture of <img> a dog:", codes, codes[::-1].copy(), "and its answer </s>."]
    ids = encode_prompt(contents, tokenizer, layout)
    assert ids[0] == tokenizer.bos_id
    assert structure_error(ids.tolist(), layout) is None
    assert int((ids == layout.img_start_id).sum()) == 2
    back = decode_contents(ids[1:], tokenizer, layout)
    assert [part.strip() if isinstance(part, str) else part.tolist() for part in back] == [
        contents[0], codes.tolist(), codes[::-1].tolist(), contents[3]
    ]  # fmt: skip


def test_what_does_not_fit_is_refused() -> None:
    model = tiny_model().eval()
    with pytest.raises(ValueError, match="make 129 ids, the model's context is 128"):
        generate(model, [np.ones(9, int)], LAYOUT, EOS, SamplingConfig(max_new_ids=120))
    with pytest.raises(ValueError, match="an image needs max_new_ids of 34"):
        SamplingConfig(max_new_ids=33, forces_image=True)
    with pytest.raises(ValueError, match="at least one id"):
        generate(model, [np.ones(0, int)], LAYOUT, EOS, SamplingConfig())


def test_codes_beyond_a_small_codebook_are_never_drawn() -> None:
    config = SamplingConfig(max_new_ids=IMAGE_SPAN_LENGTH, forces_image=True, num_codes=3)
    (answer,) = generate(tiny_model().eval(), [np.array([1, 5])], LAYOUT, EOS, config)
    first = LAYOUT.image_code_offset
    assert {value - first for value in answer[1:-1]} == {0, 1, 2}
    assert (answer[0], answer[-1]) == (LAYOUT.img_start_id, LAYOUT.img_end_id)
    with pytest.raises(ValueError, match=r"num_codes must be in 1\.\.8192"):
        SamplingConfig(num_codes=0)
