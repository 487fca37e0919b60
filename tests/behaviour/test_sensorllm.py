"""The splice with its checks, the losses against a plain computation, and who gets a gradient."""
import copy

import pytest
import torch
import torch.nn.functional as F
from helpers import make_chronos, make_llama

from sensorllm_min.chronos_tokenizer import ChronosTokenizer
from sensorllm_min.files import InputError
from sensorllm_min.batch import IGNORED, collate
from sensorllm_min.data.examples import AlignExamples, HarExamples, PromptFormat
from sensorllm_min.data.prepared import PreparedData
from sensorllm_min.sensorllm import PARTS, Projector, SensorLLM, class_weights
from sensorllm_min.text_tokenizer import PAD, load_text_tokenizer, new_tokens, train_backend
from sensorllm_min.data.examples import sample_texts
from sensorllm_min.weights import load_llama, load_t5_encoder


@pytest.fixture(scope="module")
def data(demo):
    return PreparedData(demo)


@pytest.fixture(scope="module", params=[False, True], ids=["own head", "tied head"])
def sources(request, data, tmp_path_factory):
    """A random LLaMA with a tokenizer, and a random Chronos, both in Hugging Face layout; transformers' models of them."""
    folder = tmp_path_factory.mktemp("sources")
    backend = train_backend(sample_texts(data), 500)
    llm = make_llama(folder / "llm", backend, vocab_size=512, tie_word_embeddings=request.param)   # padded vocabulary
    return folder, llm, make_chronos(folder / "encoder")


@pytest.fixture
def parts(sources, data):
    """(model without head, tokenizer): a fresh one for each test."""
    folder, _, _ = sources
    torch.manual_seed(0)
    llm, (encoder, chronos) = load_llama(folder / "llm"), load_t5_encoder(folder / "encoder")
    tokenizer = load_text_tokenizer(folder / "llm", llm.config, new_tokens(data.dataset.channels))
    return SensorLLM(encoder, ChronosTokenizer(chronos), llm, tokenizer, (40,)), tokenizer


def with_head(model, tokenizer, n_classes=5):
    return SensorLLM(model.encoder, model.chronos, model.llm, tokenizer, (40,), n_classes)


def align_batch(data, tokenizer, indices=(0, 100, 333), **options):
    examples = AlignExamples(data, "train", PromptFormat(tokenizer, 512, 4096))
    return collate([examples[i] for i in indices], tokenizer.pad_id, **options)


def har_batch(data, tokenizer, indices=(0, 900), text=("smry", "Q")):
    examples = HarExamples(data, "train", PromptFormat(tokenizer, 512, 4096, text))
    return collate([examples[i] for i in indices], tokenizer.pad_id)


def test_align_prompt_reads_as_it_should(data, parts):
    _, tokenizer = parts
    example = AlignExamples(data, "train", PromptFormat(tokenizer, 512, 4096))[0]
    channel, n = data.dataset.channels[0], example.record["length"]
    text = tokenizer.backend.decode([i for i in example.prompt if i < 512], with_special=True)
    assert text == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nA dialogue between a researcher and an assistant. "
        f"The assistant analyses a sensor time series of {n} points sampled at 20 Hz.<|eot_id|>"
        f"<|start_header_id|>user<|end_header_id|>\n\n{example.record['question']}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n")
    assert tokenizer.decode(example.prompt).count("<ts>") == n + 1
    assert f"{channel.start}<ts>" in tokenizer.decode(example.prompt)
    assert f"<ts>{channel.end}{example.record['question']}" in tokenizer.decode(example.prompt)
    assert tokenizer.decode(example.answer) == example.record["answer"] and example.answer[-1] == tokenizer.end_of_turn


def test_har_prompt_reads_as_it_should(data, parts):
    _, tokenizer = parts
    for text in ((), ("smry",), ("smry", "trend", "corr", "Q"), ("smry", "meta", "Q")):
        example = HarExamples(data, "train", PromptFormat(tokenizer, 512, 4096, text, bool(text)))[3]
        prompt = tokenizer.decode(example.prompt[1:])
        lines = prompt.split("\n")
        for line, channel in zip(lines, data.dataset.channels):
            name = f"{channel.spoken}: " if text else ""
            assert line == name + channel.start + "<ts>" * 25 + channel.end
        assert example.prompt.count(tokenizer.bos_id) == 1
        window = data.window(example.record)
        assert ("z-axis gyroscope: Mean=" in prompt) == ("smry" in text)
        if "smry" in text:
            spoken = float(prompt.split("z-axis gyroscope: Mean=")[1].split(",")[0])
            assert spoken == pytest.approx(window[:, 5].astype(float).mean(), abs=1e-8)
        assert ("Which activity" in prompt) == ("Q" in text) and (" correlated." in prompt) == ("corr" in text)


def test_prompts_for_generation_end_at_the_same_place(data, parts):
    _, tokenizer = parts
    batch = align_batch(data, tokenizer, for_generation=True)
    lengths = batch.mask.sum(1)
    assert len(set(lengths.tolist())) > 1 and (batch.targets == IGNORED).all()
    for row, length in enumerate(lengths):
        assert batch.mask[row, -length:].all() and not batch.mask[row, :-length].any()


def test_splice_puts_each_vector_at_its_placeholder(data, parts):
    """Row by row, channel by channel, against the encoder and projector called on one series alone."""
    model, tokenizer = parts
    torch.nn.init.normal_(model.special_embeddings)  # they begin alike: any row would do
    for batch in (align_batch(data, tokenizer), har_batch(data, tokenizer), align_batch(data, tokenizer, for_generation=True)):
        with torch.no_grad():
            x = model.embed(batch)
            expected = []
            for series, length in zip(batch.series, batch.series_lengths):
                ids, mask, _, _ = model.chronos.encode(series[None, -int(length):])
                expected.append(model.projector(model.encoder(ids, mask)[0]))
            torch.testing.assert_close(x[batch.ids == tokenizer.sensor_id], torch.cat(expected), rtol=0, atol=1e-5)
            markers = (batch.ids >= 512) & (batch.ids != tokenizer.sensor_id)
            torch.testing.assert_close(x[markers], model.special_embeddings[batch.ids[markers] - 512])
            words = batch.ids < 512
            torch.testing.assert_close(x[words], model.llm.embed_tokens(batch.ids[words]))
            assert not torch.equal(model.special_embeddings[0], x[words][0])


def test_prompts_that_do_not_fit_are_errors(data, parts):
    model, tokenizer = parts
    good = align_batch(data, tokenizer)
    model.embed(good)
    sensor = (good.ids[1] == tokenizer.sensor_id).nonzero().ravel()

    def refused(change):
        bad = copy.deepcopy(good)
        change(bad)
        with pytest.raises(ValueError, match="the encoder gives"):
            model.embed(bad)

    refused(lambda b: b.ids[1].__setitem__(sensor[2], 5))          # a placeholder too few
    refused(lambda b: b.ids[1].__setitem__(sensor[-1] + 1, tokenizer.sensor_id))     # one too many
    refused(lambda b: b.series_lengths.__setitem__(0, 3))


def test_a_generated_placeholder_cannot_happen(data, parts):
    """The head covers the vocabulary alone, so no new token can come out of it."""
    model, _ = parts
    assert model.llm.logits(torch.randn(1, 48)).shape[-1] == 512


def test_losses_equal_transformers(data, sources, parts):
    """Losses and gradients, of wanted tokens only, against all tokens and full logits."""
    _, theirs, _ = sources
    model, tokenizer = parts
    theirs.requires_grad_(False)

    def assert_same(loss, expected):
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for ours, reference in zip(torch.autograd.grad(loss, trained), torch.autograd.grad(expected, trained), strict=True):
            torch.testing.assert_close(ours, reference, rtol=0, atol=1e-5 * reference.abs().max().item())

    batch = align_batch(data, tokenizer)
    model.train_only(("projector", "tokens"))
    loss, count = model(batch)
    full = theirs(inputs_embeds=model.embed(batch), attention_mask=batch.mask.long()).logits
    expected = F.cross_entropy(full[:, :-1].flatten(0, 1), batch.targets[:, 1:].flatten(), ignore_index=IGNORED)
    assert count == (batch.targets != IGNORED).sum()
    assert_same(loss, expected * count)                           # a sum: shares of processes add up

    model = with_head(model, tokenizer)
    model.train_only(("projector", "tokens", "head"))
    model.class_weights = torch.tensor([0.1, 0.2, 0.3, 0.15, 0.25])
    batch = har_batch(data, tokenizer, indices=(0, 900, 1400, 1900))
    assert not batch.mask[:, -1].all()  # so that a row's last token is not the batch's
    loss, weight = model(batch)
    hidden = theirs.model(inputs_embeds=model.embed(batch), attention_mask=batch.mask.long()).last_hidden_state
    last = torch.stack([hidden[row, batch.mask[row].nonzero().max()] for row in range(4)])
    logits = last @ model.head.weight.T
    torch.testing.assert_close(model.class_logits(batch), logits, rtol=0, atol=1e-5 * logits.abs().max().item())
    torch.testing.assert_close(weight, model.class_weights[batch.labels].sum())
    mean = F.cross_entropy(logits, batch.labels, weight=model.class_weights)
    assert_same(loss, mean * weight)


@pytest.mark.parametrize("trained", [("projector", "tokens"), ("projector", "head"), ("head",), ("encoder", "projector"),
                                     ("llm", "tokens"), PARTS], ids="+".join)
def test_trained_parts_get_a_gradient_and_frozen_ones_stay(data, parts, trained):
    """Each trained parameter gets one, each frozen one none and stays as it was."""
    model, tokenizer = parts
    har = "head" in trained
    if har:
        model = with_head(model, tokenizer)
    model.train_only(trained)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    loss, weight = model(har_batch(data, tokenizer) if har else align_batch(data, tokenizer))
    (loss / weight).backward()
    for name, parameter in model.named_parameters():
        wanted = model.part_of(name) in trained and not (har and name == "llm.lm_head.weight")
        assert parameter.requires_grad == wanted, name
        assert (parameter.grad is not None and parameter.grad.abs().sum() > 0) == wanted, name
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-2).step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (parameter.grad is None), name


def test_every_channel_and_marker_learns_without_stage_1(data, parts):
    """All six channels pass a gradient to the projector; all twelve markers get one, <ts> and [PAD] none."""
    model, tokenizer = parts
    model = with_head(model, tokenizer)
    model.train_only(("projector", "tokens", "head"))
    batch = har_batch(data, tokenizer)
    caught = []

    def keep(module, inputs, output):
        output.retain_grad()
        caught.append(output)
    model.projector.register_forward_hook(keep)
    loss, _ = model(batch)
    loss.backward()
    per_channel = caught[0].grad.abs().sum(1).split((batch.series_lengths + 1).tolist())
    assert len(per_channel) == 12 and all((channel > 0).all() for channel in per_channel)
    touched = model.special_embeddings.grad.abs().sum(1) > 0
    assert touched.tolist() == [token not in (PAD, "<ts>") for token in tokenizer.added]


def test_trained_parts_are_float32_and_frozen_ones_as_loaded(sources, data):
    folder, _, _ = sources
    llm, (encoder, chronos) = load_llama(folder / "llm", torch.bfloat16), load_t5_encoder(folder / "encoder", torch.bfloat16)
    tokenizer = load_text_tokenizer(folder / "llm", llm.config, new_tokens(data.dataset.channels))
    model = SensorLLM(encoder, ChronosTokenizer(chronos), llm, tokenizer, (40,))
    expected = llm.embed_tokens.weight.double().mean(0)  # not of sums that bfloat16 has rounded
    torch.testing.assert_close(model.special_embeddings[0].double(), expected, rtol=0, atol=1e-7)
    model.train_only(("projector", "tokens"))
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float32 if model.part_of(name) in ("projector", "tokens") else torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        loss, count = model(align_batch(data, tokenizer))
    loss.backward()
    assert model.special_embeddings.grad.dtype == torch.float32 and loss.isfinite()
    model.train_only(("encoder",))  # a part that was loaded in bfloat16
    assert {parameter.dtype for parameter in model.encoder.parameters()} == {torch.float32}


def test_the_projector_has_the_papers_sizes():
    """The paper's 10.5 M parameters for 1024 -> 2048 -> 4096, and its ablation with two hidden layers."""
    def count(module):
        return sum(p.numel() for p in module.parameters())

    with torch.device("meta"):
        assert count(Projector(1024, (2048,), 4096)) == 1024 * 2048 + 2048 + 2048 * 4096 + 4096 == 10_491_904
        assert [layer.out_features for layer in Projector(1024, (2048, 3072), 4096) if hasattr(layer, "out_features")] == \
            [2048, 3072, 4096]


def test_the_projector_is_linear_maps_with_gelu_between():
    torch.manual_seed(0)
    projector, x = Projector(6, (7, 8), 9), torch.randn(5, 6)
    weights = list(projector.parameters())
    expected = F.linear(x, weights[0], weights[1])
    for weight, bias in ((weights[2], weights[3]), (weights[4], weights[5])):
        gelu = expected * (1 + torch.erf(expected / 2 ** 0.5)) / 2  # the exact one, not its tanh
        expected = F.linear(gelu, weight, bias)
    # float32, values of size 1
    torch.testing.assert_close(projector(x), expected, rtol=0, atol=1e-6)


def test_class_weights_are_inverse_frequencies_that_sum_to_1():
    weights = class_weights([0, 0, 0, 1, 3, 3], 5)
    torch.testing.assert_close(weights, torch.tensor([1 / 3, 1, 0, 1 / 2, 0]) / (1 / 3 + 1 + 1 / 2))
    assert weights.sum().item() == pytest.approx(1)


def test_windows_longer_than_the_encoder_s_context_are_refused(data, parts):
    _, tokenizer = parts
    for examples in (AlignExamples, HarExamples):
        with pytest.raises(InputError, match="samples.*context holds 10"):
            examples(data, "train", PromptFormat(tokenizer, 10, 4096))


@pytest.mark.parametrize("examples", [AlignExamples, HarExamples])
def test_prompt_and_answer_together_must_fit_into_the_llm(data, parts, examples):
    _, tokenizer = parts
    (example,) = examples(data, "train", PromptFormat(tokenizer, 512, 4096, answer="text"), limit=1)
    length = len(example.prompt) + len(example.answer)
    assert len(example.answer) > 1
    assert len(examples(data, "train", PromptFormat(tokenizer, 512, length, answer="text"), limit=1)) == 1
    with pytest.raises(InputError, match=f"makes a prompt of {length} tokens, the LLM takes {length - 1}"):
        examples(data, "train", PromptFormat(tokenizer, 512, length - 1, answer="text"), limit=1)




def test_the_backward_pass_keeps_no_matrix_of_logits(data, parts):
    """Nothing as large as answer tokens x vocabulary is kept, which is the largest tensor otherwise."""
    model, tokenizer = parts
    model.train_only(("projector", "tokens"))
    batch, kept = align_batch(data, tokenizer, range(0, 2000, 100)), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        loss, n_tokens = model(batch)
    assert loss.requires_grad and max(kept) < n_tokens * 512
