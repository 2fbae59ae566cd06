"""Models to start from: what they compute does not depend on padding, on a cache, or on who else is in the batch."""

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dasktrain.models import MLP, Decoder, Encoder, EncoderDecoder, ResNetMLP, TextCNN
from dasktrain.models.attention import Attention
from dasktrain.models.sampling import choose

VOCABULARY, WRITTEN, OUTPUTS, CONTEXT = 11, 7, 3, 8
SMALL: dict[str, Any] = {"layers": 2, "width": 16, "heads": 2, "context": CONTEXT, "dropout": 0.2}
START, END = 5, 6
few = settings(max_examples=20, deadline=None)


pytestmark = pytest.mark.usefixtures("one_thread")


def drawn(build: Callable[[], nn.Module]) -> Any:
    """Return a model in float64 with weights so large that what it says depends on what it reads."""
    model, generator = build().double().eval(), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:  # not normalisation, not biases
                parameter.normal_(0, 0.5, generator=generator)
    return model


DECODER = drawn(lambda: Decoder(VOCABULARY, **SMALL))
WRITER = drawn(lambda: EncoderDecoder(VOCABULARY, WRITTEN, **SMALL))
READERS = {
    "encoder": drawn(lambda: Encoder(VOCABULARY, OUTPUTS, **SMALL)),
    "convolutions": drawn(lambda: TextCNN(VOCABULARY, OUTPUTS, width=8, channels=4, kernels=(1, 3, 5))),
}
readers = pytest.mark.parametrize("model", READERS.values(), ids=READERS.keys())
generators = pytest.mark.parametrize("model", [DECODER, WRITER], ids=["decoder", "encoder-decoder"])


def tokens(rows: int, length: int, most: int = VOCABULARY, seed: int = 0) -> Tensor:
    return torch.randint(most, (rows, length), generator=torch.Generator().manual_seed(seed))


def written(model: Any, rows: int = 3, **given: Any) -> Tensor:
    """Have either model write."""
    if model is WRITER:
        given = {"start": START, "end": None} | given
    found: Tensor = model.generate(tokens(rows, 4), **({"max_tokens": 7, "temperature": 0.0} | given))
    return found


# -- shapes -----------------------------------------------------------------------------------------------------


def test_decoder_scores_every_place() -> None:
    assert DECODER(tokens(5, 7)).shape == (5, 7, VOCABULARY)


@readers
@pytest.mark.parametrize("length", [1, 2, CONTEXT])
def test_readers_score_texts_of_any_length(model: nn.Module, length: int) -> None:
    assert model(tokens(5, length)).shape == (5, OUTPUTS)


def test_encoder_decoder_scores_every_place_that_is_written() -> None:
    assert WRITER(tokens(5, 7), None, tokens(5, 3, WRITTEN)).shape == (5, 3, WRITTEN)


@pytest.mark.parametrize("build", [MLP, ResNetMLP])
@pytest.mark.parametrize(("features", "cardinalities"), [(4, ()), (0, (3, 200)), (4, (3, 200))])
def test_networks_for_tables_take_numbers_categories_or_both(
    build: Any, features: int, cardinalities: tuple[int, ...]
) -> None:
    model = drawn(lambda: build(features, OUTPUTS, cardinalities))
    numbers, categories = torch.randn(5, features).double(), torch.tensor([[0, 199], [2, 0]] * 2 + [[1, 1]])
    inputs = [part for part, there in ((numbers, features), (categories, cardinalities)) if there]
    output = model(*inputs)
    assert output.shape == (5, OUTPUTS)
    for place, part in enumerate(inputs):  # none of them is left out
        others = [*inputs[:place], part.flip(0), *inputs[place + 1 :]]
        assert not torch.equal(model(*others), output)


@pytest.mark.parametrize("build", [MLP, ResNetMLP])
def test_networks_for_tables_have_the_width_they_are_asked_for(build: Any) -> None:
    assert build(4, OUTPUTS, (3, 200)).columns.width == 4 + 2 + 50


# -- padding, masks and causality -------------------------------------------------------------------------------


@readers
@few
@given(lengths=st.lists(st.integers(1, CONTEXT), min_size=1, max_size=4), pad=st.integers(0, VOCABULARY - 1))
def test_padding_changes_no_output(model: nn.Module, lengths: list[int], pad: int) -> None:
    longest = max(lengths)
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    texts = tokens(len(lengths), longest).where(mask, pad)
    alone = torch.cat([model(text[None, :length]) for text, length in zip(texts, lengths, strict=True)])
    torch.testing.assert_close(model(texts, mask.long()), alone)


@few
@given(st.lists(st.integers(1, CONTEXT), min_size=1, max_size=4), st.integers(1, CONTEXT))
def test_padding_of_what_is_read_changes_nothing_that_is_written(lengths: list[int], places: int) -> None:
    longest = max(lengths)
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    texts, before = tokens(len(lengths), longest).where(mask, 0), tokens(len(lengths), places, WRITTEN)
    rows = zip(texts, before, lengths, strict=True)
    alone = torch.cat([WRITER(text[None, :length], None, answer[None]) for text, answer, length in rows])
    torch.testing.assert_close(WRITER(texts, mask.long(), before), alone)


@few
@given(st.integers(1, CONTEXT - 1), st.integers(0, 2**32))
def test_later_token_changes_no_earlier_score(place: int, seed: int) -> None:
    for score, most in ((DECODER, VOCABULARY), (lambda before: WRITER(tokens(3, 4), None, before), WRITTEN)):
        one, other = tokens(3, CONTEXT, most), tokens(3, CONTEXT, most, seed)
        other[:, :place] = one[:, :place]
        other[:, place] = (one[:, place] + 1) % most
        torch.testing.assert_close(score(one)[:, :place], score(other)[:, :place])
        assert not torch.allclose(score(one)[:, place:], score(other)[:, place:])


@pytest.mark.parametrize(
    "score",
    [
        DECODER,
        READERS["encoder"],
        lambda long: WRITER(long, None, tokens(2, 3, WRITTEN)),
        lambda long: WRITER(tokens(2, 3), None, long % WRITTEN),
    ],
    ids=["decoder", "encoder", "text read", "text written"],
)
def test_sequence_longer_than_the_context_is_refused(score: Callable[[Tensor], Tensor]) -> None:
    score(tokens(2, CONTEXT))
    with pytest.raises(ValueError, match=f"at most {CONTEXT} tokens, however it has {CONTEXT + 1}"):
        score(tokens(2, CONTEXT + 1))


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="heads must divide width, however they are 3 and 16"):
        Attention(16, 3, 0.0)
    with pytest.raises(ValueError, match="kernels must be odd, however they are"):
        TextCNN(VOCABULARY, OUTPUTS, kernels=(3, 4))


# -- writing ----------------------------------------------------------------------------------------------------


def gone_on(prompt: Tensor, places: int) -> Tensor:
    """Go on greedily without a cache: read everything anew for each token, half of the context once it was full."""
    everything, window = prompt, prompt[:, -CONTEXT:]
    for _ in range(places):
        token = DECODER(window)[:, -1:].argmax(dim=-1)
        everything = torch.cat([everything, token], dim=1)
        window = everything[:, -CONTEXT // 2 :] if window.shape[1] == CONTEXT else torch.cat([window, token], dim=1)
    return everything[:, prompt.shape[1] :]


@few
@given(st.integers(1, 2 * CONTEXT), st.integers(1, 3 * CONTEXT), st.integers(0, 2**32))
def test_decoder_goes_on_as_it_would_without_a_cache(length: int, places: int, seed: int) -> None:
    prompt = tokens(3, length, seed=seed)
    found = DECODER.generate(prompt, places, temperature=0)
    assert torch.equal(found, gone_on(prompt, places))


def test_what_is_written_is_not_always_the_same_token() -> None:
    """Or the tests around this one would say little."""
    assert len(written(DECODER, rows=8, max_tokens=3 * CONTEXT).unique()) > 3
    assert len(written(WRITER, rows=8).unique()) > 2


@few
@given(st.lists(st.integers(1, CONTEXT), min_size=1, max_size=4), st.integers(1, CONTEXT), st.integers(0, 2**32))
def test_encoder_decoder_writes_what_it_scores_highest_step_by_step(lengths: list[int], places: int, seed: int) -> None:
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    texts = tokens(len(lengths), max(lengths), seed=seed)
    before = torch.full((len(lengths), 1), START)
    for _ in range(places):
        before = torch.cat([before, WRITER(texts, mask, before)[:, -1:].argmax(dim=-1)], dim=1)
    assert torch.equal(WRITER.generate(texts, mask, start=START, end=None, max_tokens=places), before[:, 1:])


@pytest.mark.parametrize(("asked", "found"), [(None, CONTEXT), (3, 3), (10 * CONTEXT, CONTEXT)])
def test_encoder_decoder_writes_no_more_than_its_context(asked: int | None, found: int) -> None:
    assert written(WRITER, max_tokens=asked).shape == (3, found)


@generators
def test_row_is_written_alike_in_any_company(model: Any) -> None:
    together = written(model, rows=4)
    for row in range(4):
        given: dict[str, Any] = {"start": START, "end": None} if model is WRITER else {}
        alone = model.generate(tokens(4, 4)[row : row + 1], max_tokens=7, temperature=0.0, **given)
        assert torch.equal(alone[0], together[row])


@generators
def test_end_stops_a_row_and_fills_it(model: Any) -> None:
    free = written(model, rows=8)
    for end in free.unique().tolist():
        found = written(model, rows=8, end=end)
        for row, text in zip(found.tolist(), free.tolist(), strict=True):
            if end not in text[: len(row)]:
                assert row == text[: len(row)]
                continue
            place = text.index(end) + 1
            assert row == text[:place] + [end] * (len(row) - place)
        places = [text.index(end) + 1 if end in text else len(text) for text in free.tolist()]
        assert found.shape[1] == max(places)


@generators
def test_one_of_the_most_probable_is_the_most_probable_one(model: Any) -> None:
    assert torch.equal(written(model, temperature=3.0, top_k=1), written(model))
    assert torch.equal(written(model, temperature=1e-4), written(model))


@generators
def test_generator_decides_what_is_drawn(model: Any) -> None:
    def draw(seed: int) -> Tensor:
        return written(model, temperature=2.0, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))


@generators
@pytest.mark.parametrize("training", [True, False])
def test_writing_leaves_the_mode_as_it_was_and_drops_nothing_out(model: Any, training: bool) -> None:
    plain = written(model)
    try:
        model.train(training)
        assert torch.equal(written(model), plain)
        assert {part.training for part in model.modules()} == {training}
        with pytest.raises(ValueError, match="temperature must be at least 0"):
            written(model, temperature=-1.0)
        assert {part.training for part in model.modules()} == {training}
    finally:
        model.eval()


@few
@given(st.floats(0.3, 3), st.none() | st.integers(1, 6))
def test_tokens_are_drawn_as_often_as_they_are_probable(temperature: float, top_k: int | None) -> None:
    logits, draws = torch.tensor([1.0, -1.0, 0.5, 2.0, 0.0]), 20_000
    kept = logits.topk(min(top_k or 5, 5)).indices
    probable = torch.zeros(5)
    probable[kept] = (logits[kept] / temperature).softmax(dim=0)
    found = choose(logits.expand(draws, 5), temperature, top_k, torch.Generator().manual_seed(0))
    shares = found.bincount(minlength=5) / draws
    torch.testing.assert_close(shares, probable, atol=0.02, rtol=0)
    assert (shares[probable == 0] == 0).all()


@pytest.mark.parametrize("wrong", [{"temperature": -0.1}, {"top_k": 0}])
def test_drawing_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="temperature must be at least 0 and top_k at least 1"):
        choose(torch.zeros(1, 3), **wrong)


# -- as modules -------------------------------------------------------------------------------------------------

CALLS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "decoder": (DECODER, (tokens(2, 4),)),
    "encoder-decoder": (WRITER, (tokens(2, 4), None, tokens(2, 3, WRITTEN))),
    **{name: (model, (tokens(2, 4),)) for name, model in READERS.items()},
    "mlp": (drawn(lambda: MLP(4, 2)), (torch.ones(3, 4).double(),)),
    "residual": (drawn(lambda: ResNetMLP(4, 2)), (torch.ones(3, 4).double(),)),
}


@pytest.mark.parametrize(("model", "inputs"), CALLS.values(), ids=CALLS.keys())
def test_model_comes_back_from_a_pickle_and_a_copy(model: nn.Module, inputs: tuple[Any, ...]) -> None:
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert torch.equal(other(*inputs), model(*inputs))


@pytest.mark.parametrize(("model", "inputs"), CALLS.values(), ids=CALLS.keys())
def test_every_parameter_is_trained(model: nn.Module, inputs: tuple[Any, ...]) -> None:
    if len(inputs) > 2:
        inputs = (inputs[0], torch.ones_like(inputs[0]), *inputs[2:])
    model.zero_grad()
    (model(*inputs) ** 2).sum().backward()
    unused = [name for name, each in model.named_parameters() if each.grad is None]
    model.zero_grad()
    assert unused == []


@pytest.mark.parametrize("build", [Decoder, Encoder, EncoderDecoder])
def test_new_transformer_says_nothing_yet(build: Any) -> None:
    """Scores of a model that has learnt nothing are near to each other: the first loss is that of guessing."""
    torch.manual_seed(0)
    size = SMALL | {"width": 128, "heads": 4, "dropout": 0.0}
    model = build(VOCABULARY, **size) if build is Decoder else build(VOCABULARY, WRITTEN, **size)
    inputs = (tokens(4, 6), None, tokens(4, 6, WRITTEN)) if build is EncoderDecoder else (tokens(4, 6),)
    with torch.no_grad():
        scores = model(*inputs)
    surprise = -scores.log_softmax(dim=-1).mean()
    assert surprise == pytest.approx(math.log(scores.shape[-1]), rel=0.03)
